"""Representation alignment in ucgm train: live and stored features, resuming, refusals."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.training.test_train import same, tiny, weights
from ucgm.data import Latents
from ucgm.data.encoding.command import encode_data
from ucgm.data.extractor import Extractor
from ucgm.nn import DiTConfig, UNetConfig
from ucgm.objective import preset
from ucgm.runs.settings import AlignmentConfig
from ucgm.training.loop import train

LIVE = "tests.training.test_alignment:build"


class Colours(nn.Module):
    """Features of places: two fixed convolutions of colour images."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("filters", torch.randn(6, 3, 2, 2, generator=generator))

    def maps(self, images):
        return torch.conv2d(images.float() / 128 - 1, self.filters, stride=2)


def build(weights):
    return Extractor("colours", "0" * 64, Colours(), {"features": 6}, 3, batch_size=8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for k in range(10):
            pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def stored(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("set") / "data"
    encode_data(
        str(tree), "identity", 8, str(out), dtype="float32", shard_size=8, num_workers=0,
        features=LIVE, device="cpu",
    )  # fmt: skip
    return out


def aligned(data=None, weight=0.5, **settings):
    wanted = replace(
        tiny(),
        objective=preset("flow_matching", alignment=weight),
        alignment=AlignmentConfig(hidden=16, **settings),
    )
    return wanted if data is None else replace(wanted, data=Latents(str(data)))


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_stored_and_live_features_give_the_same_loss(stored, tmp_path):
    """Pixels, half of the samples mirrored; features as float32 beside them."""
    live = train(aligned(stored, extractor=LIVE), tmp_path / "live")
    read = train(aligned(stored), tmp_path / "stored")
    assert losses(live) == pytest.approx(losses(read), rel=1e-6)
    plain = train(replace(aligned(stored), objective=preset("flow_matching")), tmp_path / "plain")
    gaps = [a - b for a, b in zip(losses(read), losses(plain), strict=True)]
    assert all(1e-3 < abs(gap) <= 0.51 for gap in gaps)
    rows = load_file(stored / "features/shard_00000.safetensors")["latents"]
    images = load_file(stored / "shard_00000.safetensors")["latents"]
    torch.testing.assert_close(rows, build(None).maps(images))


@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_resuming_is_bitwise_exact(projector, tmp_path):
    """Digits, whose classifier comes with ucgm; its grid of 4 becomes the network's 2."""
    settings = dict(extractor="digits", layer=2, projector=projector)
    config = aligned(**settings, gamma=0.6)
    whole = train(config, tmp_path / "whole")
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints/step_0000006")
    train(config, cut)
    for name in ("network", "ema", "alignment", "optimizer"):
        assert same(weights(whole, 6, name), weights(cut, 6, name)), name
    assert not same(weights(whole, 3, "alignment"), weights(whole, 6, "alignment"))
    assert losses(whole) == losses(cut)


def test_refusals(stored, tree, tmp_path):
    def refused(config, words):
        with pytest.raises(ValueError, match=words):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused(aligned(), "needs features: name an extractor")
    refused(aligned(extractor="digits", layer=3), "alignment.layer 3 must lie in 1 to 2")
    refused(aligned(extractor="random"), "extractor random has no features of places")
    refused(aligned(stored, extractor="digits"), "extractor digits takes")
    unet = UNetConfig(channels=(8,), layers_per_block=1, attention=(), head_size=4, norm_groups=4)
    refused(replace(aligned(extractor="digits"), model=unet), "tokens of a transformer")
    with pytest.raises(ValueError, match="must be odd"):
        AlignmentConfig(kernel=2)
    plain = tmp_path / "plain"
    encode_data(str(tree), "identity", 8, str(plain), num_workers=0, device="cpu")
    refused(aligned(plain), "needs features: name an extractor")
    manifest = json.loads((stored / "manifest.json").read_text())
    assert manifest["features"] == {"name": "colours", "sha256": "0" * 64, "note": ""}
    shutil.copytree(stored, tmp_path / "broken")
    (tmp_path / "broken/features/shard_00001.safetensors").unlink()
    refused(aligned(tmp_path / "broken"), "shard_00001")


def test_the_features_reach_the_network(tmp_path):
    """With the weight of the term alone different, the tokens' block is trained differently."""
    one, two = (train(aligned(weight=w, extractor="digits"), tmp_path / str(w)) for w in (0.5, 1.0))
    name = "blocks.0.attn.qkv.weight"
    assert not torch.equal(weights(one, 3)[name], weights(two, 3)[name])
    assert DiTConfig(size="N/4").build((1, 8, 8), 10).grid == 2
