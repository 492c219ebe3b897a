"""Both directions of every codec, against direct calls of the real classes."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.data import toys
from ucgm.data.latents.autoencoder import open_autoencoder, state_digest
from ucgm.data.latents.codec import Codec, CodecSettings
from ucgm.data.latents.statistics import EDM2_MEAN, EDM2_STD, normalisation, read_statistics
from ucgm.data.pixels import from_uint8, to_uint8


def codec_for(where, size, rule="channel"):
    autoencoder = open_autoencoder(str(where))
    shape = autoencoder.latent_shape(size)
    channels = shape[0]
    data = torch.linspace(-1, 1, channels).double(), torch.linspace(0.5, 2, channels).double()
    mean, std, scale = normalisation(rule, autoencoder, data, channels)
    settings = CodecSettings(str(where), size, None, rule).resolved(autoencoder.deterministic)
    kind, digest = autoencoder.kind, autoencoder.digest
    return Codec(str(where), kind, digest, size, shape, settings.store, rule, mean, std, scale)


@pytest.fixture
def images(generator):
    return torch.randint(0, 256, (3, 3, 16, 16), generator=generator, dtype=torch.uint8)


BUILDERS = {
    "kl": lambda: toys.tiny_kl(scaling_factor=0.18215, shift_factor=0.1),
    "vavae": lambda: toys.tiny_kl(8, 3, attention=True),
    "dc": toys.tiny_dc,
    "rae": toys.tiny_rae,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_codec_is_the_model_and_its_statistics(name, images, tmp_path):
    if name == "rae":
        pytest.importorskip("transformers")
    model = BUILDERS[name]()
    model.save_pretrained(tmp_path)
    codec = codec_for(tmp_path, 16)
    pixels = from_uint8(images)
    with torch.no_grad():
        if name in ("kl", "vavae"):
            raw = model.encode(pixels).latent_dist.mean
            decoded = model.decode(raw).sample
        elif name == "dc":
            raw = model.encode(pixels).latent
            decoded = model.decode(raw).sample
        else:  # the model works on [0, 1]
            raw = model.encode((pixels + 1) / 2).latent
            decoded = model.decode(raw).sample * 2 - 1
    assert codec.shape == tuple(raw.shape[1:])
    columns = [torch.tensor(v)[None, :, None, None] for v in (codec.mean, codec.std)]
    expected = (raw - columns[0]) / columns[1]
    x = codec.encode(images)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codec.to_raw(x), raw, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codec.to_network(codec.to_raw(x)), x, rtol=1e-5, atol=1e-5)
    difference = codec.decode(x).int() - to_uint8(decoded).int()
    assert difference.abs().max() <= 1
    assert (difference == 0).float().mean() > 0.999


def test_scale_is_the_models_factor(tmp_path):
    toys.tiny_kl(scaling_factor=0.18215, shift_factor=0.25).save_pretrained(tmp_path)
    codec = codec_for(tmp_path, 16, "scale")
    raw = torch.randn(2, 4, 8, 8)
    assert torch.equal(codec.to_network(raw), (raw - 0.25) * 0.18215)
    torch.testing.assert_close(codec.to_raw(codec.to_network(raw)), raw)


def test_edm2_affine():
    codec = Codec("x", "kl", "", 8, (4, 1, 1), "mean", "edm2", EDM2_MEAN, EDM2_STD, 0.5)
    raw = torch.tensor(EDM2_MEAN).reshape(1, 4, 1, 1) + 2 * torch.tensor(EDM2_STD).reshape(
        1, 4, 1, 1
    )
    torch.testing.assert_close(codec.to_network(raw), torch.ones(1, 4, 1, 1))


def test_identity_is_exact(images):
    codec = codec_for("identity", 16, "none")
    assert torch.equal(codec.encode(images), from_uint8(images))
    assert torch.equal(codec.decode(codec.encode(images)), images)


def test_decode_does_not_depend_on_the_cut(tmp_path, generator):
    toys.tiny_kl().save_pretrained(tmp_path)
    codec = codec_for(tmp_path, 16)
    x = torch.randn(20, 4, 8, 8, generator=generator)
    parts = torch.cat([codec.decode(x[i : i + 1]) for i in range(20)])
    assert (codec.decode(x).int() - parts.int()).abs().max() <= 1


def test_saved_and_loaded(tmp_path):
    codec = Codec("v", "kl", "d", 8, (2, 4, 4), "sample", "channel", (0.1, 1 / 3), (1.0, 2.0), 0.5)
    codec.save(tmp_path)
    assert Codec.load(tmp_path) == codec
    with pytest.raises(ValueError, match="has no codec.json"):
        Codec.load(tmp_path / "nowhere")
    values = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps(values | {"format": 7}))
    with pytest.raises(ValueError, match="not a codec of format 1"):
        Codec.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"vae": "other-vae"},
        {"digest": "e"},
        {"scale": 1.0},
        {"mean": (0.0, 0.0)},
        {"store": "mean"},
    ],
)
def test_another_codec_is_refused_with_both_names(change):
    codec = Codec(
        "my-vae", "kl", "d", 8, (2, 4, 4), "sample", "channel", (0.1, 0.2), (1.0, 2.0), 0.5
    )
    codec.check(replace(codec, place="elsewhere"), "a", "b")
    with pytest.raises(ValueError) as caught:
        codec.check(replace(codec, **change), "the run R", "the data set D")
    message = str(caught.value)
    assert "the run R" in message and "the data set D" in message and "my-vae" in message
    assert next(iter(change)) in message
    assert change.get("vae", "my-vae") in message


def test_weights_that_changed_are_refused(tmp_path):
    toys.tiny_kl(seed=0).save_pretrained(tmp_path / "one")
    toys.tiny_kl(seed=1).save_pretrained(tmp_path / "two")
    codec = replace(codec_for(tmp_path / "one", 16), place=str(tmp_path / "two"))
    with pytest.raises(ValueError, match="one.*with weights.*data.vae_path"):
        codec.decode(torch.zeros(1, 4, 8, 8))


def test_channels_and_deviations_are_checked():
    with pytest.raises(ValueError, match="4 latent channels, its statistics 1 means"):
        Codec("v", "kl", "d", 8, (4, 4, 4), "mean", "channel", (0.0,), (1.0,))
    with pytest.raises(ValueError, match=r"std\[0\] must be above 0"):
        Codec("v", "kl", "d", 8, (1, 4, 4), "mean", "channel", (0.0,), (0.0,))
    codec = Codec("v", "kl", "d", 8, (2, 4, 4), "mean", "channel", (0.0, 0.0), (1.0, 1.0))
    with pytest.raises(ValueError, match="2 latent channels, got"):
        codec.to_network(torch.zeros(1, 4, 4, 4))


def test_statistics_files(tmp_path):
    mean, std = torch.arange(4.0).reshape(1, 4, 1, 1), torch.arange(1.0, 5).reshape(1, 4, 1, 1)
    torch.save({"mean": mean, "std": std}, tmp_path / "latents_stats.pt")
    repae = {"latents_scale": 1 / std, "latents_bias": mean}
    torch.save(repae, tmp_path / "e2e-latents-stats.pt")
    save_file({"mean": mean, "std": std}, tmp_path / "s.safetensors")
    (tmp_path / "s.json").write_text(json.dumps({"mean": [0, 1, 2, 3], "std": [1, 2, 3, 4]}))
    for path in tmp_path.iterdir():
        found = read_statistics(path)
        torch.testing.assert_close(found[0], mean.flatten().double())
        torch.testing.assert_close(found[1], std.flatten().double())
    torch.save({"a": mean}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="needs mean and std"):
        read_statistics(tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="no statistics file"):
        read_statistics(tmp_path / "chanel")


def test_published_choices():
    assert CodecSettings("sd-vae-ft-ema").resolved(False) == CodecSettings(
        "sd-vae-ft-ema", 256, "mean", "scale"
    )
    assert CodecSettings("vavae-f16d32").resolved(False).store == "sample"
    assert CodecSettings("vavae-f16d32").resolved(False).normalise == "channel"
    assert CodecSettings("own").resolved(True).store == "mean"
    with pytest.raises(ValueError, match="one latent per image"):
        CodecSettings("dc-ae-f32c32", store="moments").resolved(True)


def test_digest_is_of_the_weights_and_not_of_the_file(tmp_path):
    model = toys.tiny_kl()
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b", safe_serialization=False)
    assert (
        open_autoencoder(str(tmp_path / "a")).digest == open_autoencoder(str(tmp_path / "b")).digest
    )
    state = model.state_dict()
    changed = {k: v.clone() for k, v in state.items()}
    next(iter(changed.values())).view(-1)[0] += 1e-3
    assert state_digest(state) != state_digest(changed)


def test_models_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="no autoencoder 'sd-vea'.*sd-vae-ft-ema"):
        open_autoencoder("sd-vea")
    model = toys.tiny_kl()
    model.save_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    with pytest.raises(ValueError, match="do not fit its config.json: .* missing keys"):
        open_autoencoder(str(tmp_path / "a"))
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="UNet2DModel; supported are AutoencoderKL"):
        open_autoencoder(str(tmp_path / "a"))
    model.save_pretrained(tmp_path / "b")
    weights = tmp_path / "b" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_autoencoder(str(tmp_path / "b"))


def test_rae_says_what_it_needs(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderRAE"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install transformers"):
        open_autoencoder(str(tmp_path))


def test_sizes_the_model_cannot_take(tmp_path):
    toys.tiny_kl(levels=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="turns 18x18 pixels into 16x16: choose --size 16"):
        open_autoencoder(str(tmp_path)).latent_shape(18)
