"""Published sizes on the meta device: exact parameter counts and multiply-adds."""

import pytest
import torch

from ucgm.nn import DiTConfig, from_state_dict
from ucgm.nn.cost import cost, count_parameters, published_models

# Publications say 33M, 130M, 458M, 675M (DiT, SiT, LightningDiT), 675M (DDT-XL) and 125M, 280M,
# 498M, 777M, 1.1B, 1.5B (EDM2 XS to XXL), 131M, 459M, 953M (JiT B, L, H with patches of 16), 839M
# (DiT-DH XL), 146M, 231M, 510M, 711M (iMF), 677M (RiT), 875M (RAEv2); those of MeanFlow, DMF, pMF
# are of the released classes. Fixed position embeddings and Fourier features count.
COUNTS = {
    "DiT-S/2": 32_957_200,
    "DiT-B/2": 130_500_112,
    "DiT-L/2": 458_086_416,
    "DiT-XL/2": 675_111_184,
    "DiT-XL/1": 675_148_064,
    "LightningDiT-S/2": 32_972_944,
    "LightningDiT-B/2": 130_531_600,
    "LightningDiT-L/2": 458_120_176,
    "LightningDiT-XL/2": 675_219_856,
    "LightningDiT-XL/1": 675_256_736,
    "TiT-S/2": 32_963_344,
    "TiT-B/2": 130_512_400,
    "TiT-L/2": 458_070_000,
    "TiT-XL/2": 675_154_192,
    "TiT-XL/1": 675_191_072,
    "DDT-B/2": 130_262_800,
    "DDT-L/2": 457_648_144,
    "DDT-XL/2": 674_646_352,
    "RAE-DiT-XL/1": 677_248_384,
    "DiTDH-S/1": 196_455_764,
    "DiTDH-XL/1": 838_675_796,
    "MeanFlow-B/4": 131_214_400,
    "MeanFlow-B/2": 131_288_080,
    "MeanFlow-XL/2": 676_735_504,
    "DMF-XL/2": 675_111_184,
    "MF-DiTDH-XL/1": 840_595_284,
    "RAEv2-k7/1": 875_216_500,
    "RiT-XL/1": 676_108_992,
    "iMF-B/2": 145_596_960,
    "iMF-M/2": 230_570_016,
    "iMF-L/2": 509_752_352,
    "iMF-XL/2": 711_113_760,
    "pMF-B/16": 175_474_304,
    "pMF-L/16": 511_789_696,
    "pMF-H/16": 1_113_904_640,
    "JiT-B/16": 131_320_320,
    "JiT-B/32": 133_387_008,
    "JiT-L/16": 459_139_808,
    "JiT-L/32": 461_796_320,
    "JiT-H/16": 952_842_048,
    "JiT-H/32": 956_383_296,
    "EDM2-XS": 124_713_381,
    "EDM2-S": 280_213_093,
    "EDM2-M": 497_808_165,
    "EDM2-L": 777_498_597,
    "EDM2-XL": 1_119_284_389,
    "EDM2-XXL": 1_523_165_541,
}


def test_every_published_model_is_listed():
    assert published_models().keys() == COUNTS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    config, shape = published_models()[name]
    with torch.device("meta"):
        net = config.build(shape, 1000)
    assert count_parameters(net) == COUNTS[name]


def test_dit_xl_has_the_published_count_to_the_last_weight():
    """675,129,632 in the released DiT-XL/2: with the learned variance."""
    with torch.device("meta"):
        net = DiTConfig(size="XL/2", family="dit", learn_sigma=True).build((4, 32, 32), 1000)
    assert count_parameters(net) == 675_129_632


@pytest.mark.parametrize(
    ("name", "published"),
    [("DiT-S/2", 6.06), ("DiT-B/2", 23.01), ("DiT-XL/2", 118.64), ("EDM2-XS", 46)],
)
def test_multiply_adds_are_those_published(name, published):
    """DiT, table 1 ("Gflops"); EDM2, table 2 (per evaluation, rounded)."""
    config, shape = published_models()[name]
    assert cost(config, shape, 1000).gmacs == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches(patch):
    net = DiTConfig(size=f"N/{patch}").build((3, 8, 8), 0)
    assert net.x_embedder(torch.randn(1, 3, 8, 8)).shape == (1, (8 // patch) ** 2, 48)


def test_manifest_counts(golden):
    """The stored counts of the published constructors, rotary tables included."""
    import json

    from tests.nn.conftest import GOLDEN, architecture

    for entry in json.loads((GOLDEN / "manifest.json").read_text()):
        state, _, args = golden(entry["name"])
        net = from_state_dict(architecture(entry["name"]), state, **args)
        tables = sum(v.numel() for k, v in state.items() if "feat_rope." in k)
        assert count_parameters(net) + tables == entry["params"]
