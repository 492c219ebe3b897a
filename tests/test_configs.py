"""The published rows: every file parses over its layers, builds, and says what was published."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ucgm.cli import commands as cli
from ucgm.data import Images, Latents
from ucgm.nn import EDM2Config
from ucgm.nn.cost import count_parameters
from ucgm.nn.edm2 import MODEL_CHANNELS
from ucgm.nn.pretrained.published import ARCHITECTURES, published_at
from ucgm.objective import preset
from ucgm.objective.draw import HostTimes
from ucgm.objective.field_rules import coefficients, sources_of
from ucgm.objective.times import Beta
from ucgm.runs.config import to_dict
from ucgm.runs.layers import config_of
from ucgm.runs.settings import OptimizerConfig
from ucgm.runtime.reading import read_yaml
from ucgm.sampler import Grid, Guidance, Sampler
from ucgm.transport import EDM, Linear

CONFIGS = Path(__file__).parents[1] / "configs"
ROWS = sorted(CONFIGS.glob("*_step/*.yaml")) + sorted(CONFIGS.glob("[st][au]*/*.yaml"))
WARP, FLAT = (1.17, 0.8, 1.1), (1.0, 1.0, 1.0)

# name: (steps, zeta, a and b of Beta, sampler steps, extrapolation)
MULTI = {
    "imagenet256_e2evae": (1_000_000, 0.67, 1.0, 40, 0.5),
    "imagenet256_sdvae": (500_000, 0.44, 2.4, 60, 0.21),
    "imagenet256_vavae": (500_000, 0.47, 1.0, 60, 0.5),
    "imagenet512_dcae": (1_000_000, 0.57, 1.0, 40, 0.46),
    "imagenet512_sdvae": (400_000, 0.6, 2.4, 40, 0.4),
}
# name: (steps, zeta, pseudo-Huber c, gaps of the two-step grid)
FEW = {
    "imagenet256_e2evae": (30_000, 1.3, 9.0, (0.001, 0.5)),
    "imagenet256_sdvae": (30_000, 2.0, 5.0, (0.001, 0.3)),
    "imagenet256_vavae": (40_000, 2.0, 5.0, (0.001, 0.3)),
    "imagenet512_dcae": (50_000, 1.5, 5.0, (0.0, 0.6)),
    "imagenet512_sdvae": (50_000, 1.5, 5.0, (0.001, 0.5)),
}
# name: (steps, batch, end gap, omega in training)
TUNE = {
    "imagenet256_ddt": (800, 512, 0.5, 2.0),
    "imagenet256_lightningdit": (800, 1024, 0.6, 2.77),
    "imagenet256_repa": (800, 1024, 0.6, 1.8),
    "imagenet256_repae": (500, 1024, 0.75, 2.5),
}
# name: (guidance, steps, extrapolation, warp, gap, millions of parameters)
SAMPLE = {
    "imagenet256_ddt": (Guidance(2.0, (0.0, 0.7)), 50, 0.28, WARP, (0.001, 0.001), 675),
    "imagenet256_lightningdit": (
        Guidance(6.7, (0.0, 0.875), 3), 50, 0.5, WARP, (0.001, 0.001), 675,
    ),
    "imagenet256_repae": (
        Guidance(2.5, (0.0, 0.76)), 40, 0.54, (1.2, 0.72, 1.2), (0.001, 0.002), 675,
    ),
    "imagenet512_ddt": (Guidance(3.0, (0.0, 0.7)), 150, 0.28, WARP, (0.001, 0.001), 675),
    "imagenet512_edm2_l": (Guidance(), 50, 0.43, WARP, (0.001, 0.001), 777),
    "imagenet512_edm2_s": (Guidance(), 40, 0.4, WARP, (0.001, 0.001), 280),
    "imagenet512_edm2_xxl": (Guidance(), 40, 0.42, WARP, (0.001, 0.001), 1523),
}  # fmt: skip


# name: (preset, optimizer, batch, steps, target average, sampler steps, millions of parameters)
METHODS = {
    "alpha_flow": (
        "alpha_flow", OptimizerConfig("adamw", 1e-4, (0.9, 0.95)), 256, 1_200_000, None, 1, 677,
    ),
    "decoupled_meanflow": (
        "decoupled_meanflow", OptimizerConfig("adamw", 1e-4, (0.9, 0.95)), 256, 400_000, None, 4,
        675,
    ),
    "facm": ("facm", OptimizerConfig("adamw", 1e-4, (0.9, 0.999)), 1024, 125_100, None, 2, 677),
    "imf": (
        "imf", OptimizerConfig("adamw", 1e-4, (0.9, 0.95), warmup_steps=12_510), 1024, 800_640,
        None, 1, 711,
    ),
    "jit": (
        "jit", OptimizerConfig("adamw", 2e-4, (0.9, 0.95), warmup_steps=6255), 1024, 750_600, None,
        50, 131,
    ),
    "pixel_meanflow": (
        "pixel_meanflow", OptimizerConfig("adamw", 6e-4, (0.9, 0.999), warmup_steps=9600), 1024,
        800_000, None, 1, 36,
    ),
    "shortcut": (
        "shortcut", OptimizerConfig("adamw", 1e-4, (0.9, 0.999), weight_decay=0.1), 256, 810_000,
        0.999, 4, 677,
    ),
    "soflow": ("soflow", OptimizerConfig("adamw", 1e-4, (0.9, 0.99)), 256, 1_200_000, None, 2, 677),
    "terminal_velocity": (
        "terminal_velocity", OptimizerConfig("adamw", 1e-4, (0.9, 0.95)), 2048, 400_000, 0.99, 1,
        678,
    ),
    "tim": (
        "tim", OptimizerConfig("adamw", 2e-4, (0.9, 0.95), 1e-6, 0.01), 512, 750_000, None, 2, 677,
    ),
    "ddpm": ("ddpm", OptimizerConfig("adamw", 1e-4, (0.9, 0.999)), 256, 7_000_000, None, 250, 675),
    "edm2": (
        "edm2",
        OptimizerConfig("adamw", 1e-2, (0.9, 0.99), schedule="inverse_sqrt", warmup_steps=4883),
        2048, 1_048_576, None, 32, 280,
    ),
    "flow_matching": (
        "flow_matching", OptimizerConfig("adamw", 1e-4, (0.9, 0.999)), 256, 7_000_000, None, 250,
        675,
    ),
    "lightningdit": (
        "lightningdit", OptimizerConfig("adamw", 2e-4, (0.9, 0.95)), 1024, 1_000_800, None, 250,
        675,
    ),
    "meanflow": (
        "meanflow", OptimizerConfig("adamw", 1e-4, (0.9, 0.95)), 256, 1_200_000, None, 1, 677,
    ),
    "rae": ("flow_matching", OptimizerConfig("adamw", 2e-4), 1024, 1_751_400, None, 50, 839),
    "raev2": ("flow_matching", OptimizerConfig("muon", 2e-4), 1024, 100_080, None, 100, 875),
    "rit": ("jit", OptimizerConfig("adamw", 3e-4, warmup_steps=6255), 1536, 667_200, None, 25, 676),
    "pmf": ("imf", OptimizerConfig("muon", 1e-3, warmup_steps=12_510), 1024, 400_320, None, 1, 175),
    "meanflow_sit": (
        "meanflow", OptimizerConfig("adamw", 1e-4, (0.9, 0.95)), 256, 1_200_960, None, 1, 131,
    ),
    "meanflow_rae": (
        "meanflow", OptimizerConfig("adamw", 1e-4, (0.9, 0.95)), 256, 100_000, None, 1, 841,
    ),
    "repa": (
        "flow_matching", OptimizerConfig("adamw", 1e-4, (0.9, 0.999)), 256, 100_000, None, 250, 675,
    ),
    "irepa": (
        "flow_matching", OptimizerConfig("adamw", 1e-4, (0.9, 0.999)), 256, 100_000, None, 250, 130,
    ),
    "ot_cfm": (
        "ot_cfm", OptimizerConfig("adamw", 2e-4, (0.9, 0.999), warmup_steps=5000), 128, 400_001,
        None, 20, 36,
    ),
}  # fmt: skip


def layers(path):
    """The files under ``path``, as its header lists them, and itself."""
    text = path.read_text()
    found = re.search(r"^# layers: (.*)$", text, re.M)
    assert found or "\ndata:" in text, f"{path} does not say over which files it is layered"
    return [CONFIGS.parent / word for word in (found[1].split() if found else [])] + [path]


@pytest.fixture
def resolve(monkeypatch):
    """The configuration that the command line makes of a file over its layers."""
    import ucgm.training.loop

    calls = []
    monkeypatch.setattr(ucgm.training.loop, "train", lambda config, run_dir: calls.append(config))

    def resolved(path):
        words = [w for layer in layers(path) for w in ("--config", str(layer))]
        cli.main(["train", *words, "--run-dir", "x"])
        return calls.pop()

    return resolved


# Latents whose autoencoder is not here: what is published of them.
FEATURES = {"imagenet256_dinov3l_k7": (1024, 16, 16), "imagenet256_dinov2s": (384, 16, 16)}
# Row of a method: the architecture that an import knows its weights by.
WEIGHTS = {"jit": "jit", "imf": "imf", "pmf": "pmf", "rae": "rae_ddt", "raev2": "raev2",
           "rit": "rit", "repa": "repa", "meanflow_sit": "meanflow_sit", "meanflow_rae": "mf_rae",
           "decoupled_meanflow": "dmf"}  # fmt: skip


def latent_shape(config):
    """(C, h, w) of the latents, or pixels, that the data section asks for."""
    if (known := FEATURES.get(Path(config.data.path).name)) is not None:
        return known
    if isinstance(config.data, Images):
        return config.data.channels, config.data.size, config.data.size
    assert isinstance(config.data, Latents) and config.data.codec is not None
    vae, size = config.data.codec.vae, config.data.codec.size
    kinds = {"f16": (16, 32), "f32": (32, 32), "din": (16, 768)}
    factor, channels = kinds.get(vae[-6:-3], (8, 4))
    return channels, size // factor, size // factor


def millions(config):
    with torch.device("meta"):
        network = config.model.build(latent_shape(config), 1000)
    return count_parameters(network) / 1e6


def test_every_published_row_has_a_file():
    names = {folder: {p.stem for p in (CONFIGS / folder).glob("*")} for folder in
             ("multi_step", "few_step", "tune", "sample")}  # fmt: skip
    assert names == dict(
        multi_step=set(MULTI), few_step=set(FEW), tune=set(TUNE), sample=set(SAMPLE)
    )


@pytest.mark.parametrize("path", ROWS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_row_parses_builds_and_samples(path, resolve):
    config = resolve(path)
    size = {name: row[-1] for name, row in SAMPLE.items()}.get(path.stem, 675)
    assert millions(config) == pytest.approx(size, abs=1.0)
    assert config.sampler.nfe == config.sampler.steps
    assert f"data/{Path(config.data.path).name}.yaml" in str(layers(path)[0])
    assert "Published" in path.read_text()


@pytest.mark.parametrize("name", MULTI)
def test_multi_step_rows(name, resolve):
    steps, zeta, beta, nfe, extrapolation = MULTI[name]
    config = resolve(CONFIGS / "multi_step" / f"{name}.yaml")
    assert Path(config.data.path).name == name
    assert config.objective == preset(
        "ucgm_multi", enhancement_ratio=zeta, time_law=Beta(beta, beta)
    )
    assert config.objective.cosine_loss and config.objective.time_weight == "cosine"
    assert config.objective.enhancement_interval == (0.0, 0.75)
    assert (config.train.steps, config.train.global_batch, config.train.grad_clip) == (
        steps, 1024, None,
    )  # fmt: skip
    assert config.optimizer == OptimizerConfig("adamw", 2e-4, (0.9, 0.95))
    assert (config.ema.decay, config.ema.target_decay) == (0.9999, 0.999)
    assert config.guidance == Guidance()
    assert config.sampler == Sampler.paper(Linear(), nfe, extrapolation=extrapolation, warp=WARP)


@pytest.mark.parametrize("name", FEW)
def test_few_step_rows(name, resolve):
    steps, zeta, huber, gap = FEW[name]
    config = resolve(CONFIGS / "few_step" / f"{name}.yaml")
    multi = resolve(CONFIGS / "multi_step" / f"{name}.yaml")
    assert config.objective == preset("ucgm_few", enhancement_ratio=zeta, pseudo_huber_c=huber)
    assert config.objective.time_law == Beta(0.8, 1.0) and config.objective.needs_teacher
    assert (config.train.steps, config.train.global_batch, config.train.grad_clip) == (
        steps, 1024, 0.1,
    )  # fmt: skip
    assert config.optimizer == OptimizerConfig("radam", 1e-4, (0.9, 0.999))
    assert config.ema.decay == 0.9999 and not config.objective.needs_target
    assert (config.model, config.data) == (multi.model, multi.data)
    assert config.sampler == Sampler.paper(Linear(), 2, stochasticity=1.0, warp=FLAT, gap=gap)


@pytest.mark.parametrize("name", TUNE)
def test_tuning_rows(name, resolve):
    steps, batch, end, omega = TUNE[name]
    config = resolve(CONFIGS / "tune" / f"{name}.yaml")
    assert (config.train.steps, config.train.global_batch) == (steps, batch)
    assert config.ema.decay == 0.99 and config.guidance.scale == 1.0
    assert config.optimizer == OptimizerConfig("radam", 1e-4, (0.9, 0.999))
    assert config.train.grad_clip == 0.1
    assert sources_of(config.objective) == {"teacher"}
    assert config.sampler == Sampler.paper(Linear(), 2, stochasticity=1.0, gap=(0.001, end))
    # The data's field is the teacher's conditional one in the mean, so omega is a_d + a_c.
    inside = torch.tensor([0.5])
    host = HostTimes(t=inside, s=inside, m=inside, dropped=torch.tensor([False]))
    data, cond, null = coefficients(config.objective, host).flatten().tolist()
    assert data + cond == pytest.approx(omega) and data + cond + null == pytest.approx(1.0)


@pytest.mark.parametrize("name", SAMPLE)
def test_sampling_rows_are_what_an_import_writes(name, resolve):
    guidance, steps, extrapolation, warp, gap, _ = SAMPLE[name]
    config = resolve(CONFIGS / "sample" / f"{name}.yaml")
    path = EDM() if "edm2" in name else Linear()
    assert config.guidance == guidance
    assert config.sampler == Sampler.paper(
        path, steps, extrapolation=extrapolation, warp=warp, gap=gap
    )
    architecture = name.split("_")[1]
    known, model = ARCHITECTURES[architecture], config.model
    if isinstance(model, EDM2Config):  # an import knows the width, not the name
        model = EDM2Config(model_channels=MODEL_CHANNELS[model.size])
    source = published_at(architecture, known.source, model, latent_shape(config)[1])
    for setting in ("family", "convention", "time_max_period"):
        assert getattr(model, setting, None) == getattr(known.config, setting, None)
    values = dict(source.sampler)
    assert config.sampler == Sampler(path, grid=Grid(**values.pop("grid")), **values)
    assert (guidance.scale, guidance.interval, guidance.channels) == (
        source.guidance_scale, source.guidance_interval, source.guidance_channels,
    )  # fmt: skip
    assert config.data.codec.vae == source.vae


def test_every_method_row_is_known():
    assert {path.stem for path in (CONFIGS / "methods").glob("*")} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_method_rows(name, resolve):
    preset_name, optimizer, batch, steps, target, nfe, size = METHODS[name]
    path = CONFIGS / "methods" / f"{name}.yaml"
    config = resolve(path)
    assert config.objective.preset == preset_name and config.optimizer == replace(
        optimizer, reference_steps=config.optimizer.reference_steps
    )
    assert (config.train.global_batch, config.train.steps) == (batch, steps)
    assert (config.ema.target_decay, config.sampler.steps) == (target, nfe)
    assert config.sampler.plan() and "Published" in path.read_text()
    classes = 0 if "flat" in config.data.path else 1000
    with torch.device("meta"):
        network = config.model.build(latent_shape(config), classes)
    assert count_parameters(network) / 1e6 == pytest.approx(size, abs=1.0)
    # What the recipe says already is not said again.
    own, plain = to_dict(config), to_dict(config_of(["--objective.preset", preset_name]))
    for section, settings in read_yaml(path).items():
        for key, value in settings.items() if section in ("optimizer", "train", "ema") else ():
            assert own[section][key] != plain[section][key], f"{section}.{key}: {value}"


@pytest.mark.parametrize("name", WEIGHTS)
def test_method_rows_are_what_an_import_samples(name, resolve):
    """Network, path, sampler and guidance of its published weights; the law of t as published."""
    config = resolve(CONFIGS / "methods" / f"{name}.yaml")
    known, model = ARCHITECTURES[WEIGHTS[name]], config.model
    numbers = model.defaults()[1] if model.size else {}
    sizes = {k: numbers[k] for k in ("hidden_size", "depth", "patch_size") if k in numbers}
    read = replace(model, size=None, **sizes)  # an import reads numbers, no size
    source = published_at(WEIGHTS[name], known.source, read, latent_shape(config)[1])
    values, path = dict(source.sampler), config.objective.transport
    assert config.sampler == Sampler(path, grid=Grid(**values.pop("grid")), **values)
    guidance = Guidance(
        source.guidance_scale, source.guidance_interval, source.guidance_channels,
        source.guidance_kind,
    )  # fmt: skip
    assert config.guidance == guidance and path == Linear() and source.transport == "Linear"
    for setting in ("family", "fourier_time", "fourier_gap", "second_time"):
        assert getattr(model, setting, None) == getattr(known.config, setting, None)
    for side in (model, known.config):
        assert side.convention in (known.config.convention, None)


@pytest.mark.parametrize(("name", "shift"), [("rae", 48**0.5), ("raev2", 8.0), ("rit", 24**0.5)])
def test_times_shifted_by_the_dimension(name, shift, resolve):
    """A logit-normal time u becomes s u / (1 + (s - 1) u)."""
    law = resolve(CONFIGS / "methods" / f"{name}.yaml").objective.time_law
    u = torch.tensor([0.02, 0.5, 0.9], dtype=torch.float64)
    plain = torch.sigmoid(torch.special.ndtri(u))
    shifted = shift * plain / (1 + (shift - 1) * plain)
    torch.testing.assert_close(law.quantile(u, Linear()), shifted, rtol=1e-6, atol=1e-7)


def test_the_guide_lists_every_row():
    guide = (CONFIGS.parent / "docs" / "training.md").read_text()
    for path in ROWS + sorted(CONFIGS.glob("methods/*")):
        assert f"`{path.relative_to(CONFIGS)}`" in guide
