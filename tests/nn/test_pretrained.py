import dataclasses
import json
import math

import pytest
import torch

from tests.nn.published import random_sit_state, sit_forward
from ucgm.nn import DiTConfig, from_state_dict, import_weights
from ucgm.nn.cost import count_parameters


def batch(n=3, side=8):
    return torch.randn(n, 4, side, side), torch.rand(n), torch.tensor([0, 3, 5][:n])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_repa_with_projectors_and_legacy_names(qk_norm, legacy):
    """`decoder_blocks.k` is blocks.(k + encoder depth); the output is noise - data as ours."""
    published = random_sit_state(qk_norm=qk_norm)
    state = published | {"projectors.0.0.weight": torch.randn(8, 48)}
    if legacy:
        state = {k.replace("blocks.2.", "decoder_blocks.0."): v for k, v in state.items()}
    loaded = import_weights("repa", {"ema": state, "args": {}, "steps": 7}, num_heads=4)
    assert "projectors.0.0.weight" in loaded.dropped and "steps" in loaded.dropped
    x, t, y = batch()
    expected = sit_forward(published, x, t, y)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network.native(x, t, y), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(loaded.network(x, t, y), loaded.network.native(x, t, y))
    assert loaded.source.transport == "Linear" and loaded.source.guidance_channels is None


def test_repae_statistics_travel():
    mean, var = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([4.0, 9.0, 0.25, 1.0])
    statistics = {"running_mean": mean, "running_var": var, "num_batches_tracked": torch.tensor(9)}
    state = random_sit_state() | {f"bn.{k}": v for k, v in statistics.items()}
    loaded = import_weights("repae", state, num_heads=4)
    assert loaded.source.latent_mean == (1.0, -2.0, 0.5, 0.0)
    assert loaded.source.latent_std == (2.0, 3.0, 0.5, 1.0)
    assert len([key for key in loaded.dropped if key.startswith("bn.")]) == 3
    assert import_weights("repae", random_sit_state(), num_heads=4).source.latent_mean is None


def test_the_second_forward_pass_reproduces_the_golden_sit(golden):
    state, io, _ = golden("sit")
    out = sit_forward(state, io["x"], io["t"], io["y"])[:, :4]
    torch.testing.assert_close(out, io["out"], rtol=1e-5, atol=1e-5)


def test_diffusers_layout_of_dit():
    """Same weights in diffusers; its frequencies are corrected (it divides by 127, DiT by 128)."""
    from diffusers import DiTTransformer2DModel

    options = dict(num_attention_heads=4, attention_head_dim=12, num_layers=2, sample_size=8)
    theirs = DiTTransformer2DModel(
        **options, out_channels=8, num_embeds_ada_norm=5, norm_eps=1e-6
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.1)
        first = theirs.transformer_blocks[0].norm1.emb.state_dict()
        for block in theirs.transformer_blocks:
            block.norm1.emb.load_state_dict(first)
    ours = from_state_dict("dit", theirs.state_dict(), input_size=8, num_heads=4)
    again = from_state_dict("dit", theirs.state_dict(), **theirs.config)
    assert again.config == ours.config, "the settings of its config.json do as well"
    x, y, t = torch.randn(3, 4, 8, 8), torch.tensor([0, 3, 5]), torch.tensor([0, 500, 999])

    def theirs_at():
        with torch.no_grad():
            return theirs(x, t, y, return_dict=False)[0]

    with torch.no_grad():
        out = ours.native(x, t.float(), y)
    assert (out - theirs_at())[1:].abs().max() > 1e-3, "diffusers has the slip that we correct"
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    torch.testing.assert_close(out, theirs_at(), rtol=1e-4, atol=1e-4)

    broken = dict(theirs.state_dict())
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    broken[name] = broken[name] + 1
    with pytest.raises(ValueError, match="share one embedder"):
        from_state_dict("dit", broken, input_size=8, num_heads=4)
    with pytest.raises(ValueError, match="input_size"):
        from_state_dict("dit", theirs.state_dict(), num_heads=4)


def test_ddt_from_a_lightning_checkpoint(golden):
    state, io, args = golden("ddt")
    ema = {f"ema_denoiser._orig_mod.{k}": v for k, v in state.items()}
    online = {f"denoiser._orig_mod.{k}": v + 1 for k, v in state.items()}
    checkpoint = {"epoch": 3, "state_dict": online | ema | {"diffusion_trainer.w": torch.ones(1)}}
    loaded = import_weights("ddt", checkpoint, input_size=8, encoder_depth=1)
    with torch.no_grad():
        out = loaded.network.native(io["x"], io["t"], io["y"])
    torch.testing.assert_close(out, io["out"], rtol=1e-5, atol=1e-5)
    assert {"epoch", "diffusion_trainer.w"} <= set(loaded.dropped)
    assert loaded.source.guidance_interval == (0.0, 0.7)
    raw = import_weights("ddt", checkpoint, which="model", input_size=8, encoder_depth=1).network
    bias = "x_embedder.proj.bias"
    torch.testing.assert_close(raw.state_dict()[bias], state[bias] + 1)
    with pytest.raises(ValueError, match="encoder_depth"):
        from_state_dict("ddt", state, input_size=8)


def test_edm2_from_a_preconditioner(golden):
    state, io, _ = golden("edm2")
    wrapped = {f"unet.{k}": v.half() for k, v in state.items()}
    wrapped |= {"logvar_linear.weight": torch.ones(1, 8), "logvar_fourier.freqs": torch.ones(8)}
    loaded = import_weights("edm2", {"ema": wrapped})
    assert set(loaded.dropped) == {"logvar_linear.weight", "logvar_fourier.freqs"}
    assert all(v.dtype == torch.float32 for v in loaded.network.state_dict().values())
    assert loaded.shape == (4, 8, 8) and loaded.num_classes == 5
    assert loaded.config.channel_mult == (1, 2) and loaded.config.attention == (4,)
    with torch.no_grad():
        out = loaded.network(io["x"], io["t"], io["y"])
    torch.testing.assert_close(out, io["out"], rtol=0.05, atol=0.05)
    assert loaded.source.transport == "EDM" and loaded.source.latent_std[0] == 4.17 / 0.5


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "net."])
@pytest.mark.parametrize("nest", ["flat", "ema", "model", "state_dict"])
def test_wrappers_are_stripped(prefix, nest, golden):
    state, io, args = golden("tit")
    wrapped = {prefix + k: v for k, v in state.items()}
    other = {prefix + k: v * 2 for k, v in state.items()}
    checkpoint = {
        "flat": wrapped,
        "ema": {"model": other, "state_dict": other, "ema": wrapped, "opt": {"lr": 1}},
        "model": {"model": wrapped, "epoch": 3},
        "state_dict": {"state_dict": wrapped, "model": other},
    }[nest]
    net = from_state_dict("tit", checkpoint, num_heads=4)
    with torch.no_grad():
        out = net.native(io["x"], io["t"], io["y"])
    torch.testing.assert_close(out, io["out"], rtol=1e-5, atol=1e-5)


def test_settings_are_read_off_the_shapes(golden):
    for name in ("dit", "sit", "tit", "lightningdit", "lightningdit_qknorm_woshift"):
        state, _, args = golden(name)
        loaded = import_weights(name.split("_")[0], state, num_heads=4)
        assert loaded.shape == (4, 8, 8) and loaded.num_classes == 5
        again = loaded.config.build(loaded.shape, loaded.num_classes)
        assert again.state_dict().keys() == loaded.network.state_dict().keys()
        assert again.config == loaded.network.config
        json.dumps(dataclasses.asdict(loaded.source)), json.dumps(dataclasses.asdict(loaded.config))
    published = {"S": 6, "B": 12, "L": 16, "XL": 16}
    for size, heads in published.items():
        with torch.device("meta"):
            net = DiTConfig(size=f"{size}/2", family="dit").build((4, 32, 32), 1000)
        from ucgm.nn.pretrained.layouts import read_settings

        assert read_settings("sit", net.state_dict(), {})["num_heads"][0] == heads


def test_second_time_is_added_to_published_weights(golden):
    state, io, args = golden("lightningdit")
    one = from_state_dict("lightningdit", state, **args)
    two = from_state_dict("lightningdit", state, **args, second_time=True)
    x, t, y = io["x"], io["t"], io["y"]
    with torch.no_grad():
        assert torch.equal(two(x, t, y, t / 2), one(x, t, y))
    assert count_parameters(two) > count_parameters(one)
    again = from_state_dict("lightningdit", two.state_dict(), num_heads=4)
    assert again.config.second_time, "our own weights show it"


def test_loading_does_not_alias_or_change_the_callers_tensors(golden):
    state, _, args = golden("sit")
    before = {k: v.clone() for k, v in state.items()}
    net = from_state_dict("sit", state, **args)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert all(torch.equal(state[k], before[k]) for k in state)


ERRORS = [
    ("sit", dict(num_classes=10), "num_classes=10 does not fit .*num_classes=5 would fit"),
    ("sit", dict(input_size=16), r"pos_embed \(1, 16, 48\): input_size=8 would fit"),
    ("sit", dict(learn_sigma=False), "learn_sigma=True would fit"),
    ("sit", dict(in_channels=3, depth=4), "depth=2 would fit"),
    ("sit", dict(mlp="swiglu"), "mlp=.gelu. would fit"),
    ("sit", dict(colour=3), "unknown setting colour"),
    ("lightningdit", dict(use_qknorm=True), "missing:\n.*q_norm.weight .qk_norm=False would fit"),
    ("lightningdit", dict(use_rmsnorm=False), "norm='rms' would fit"),
    ("lightningdit", dict(wo_shift=True), "shift=True would fit"),
    ("lightningdit_qknorm_woshift", dict(qk_norm=False), "qk_norm=True would fit"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), ERRORS)
def test_a_wrong_setting_is_named_with_the_one_that_fits(name, wrong, message, golden):
    state, _, _ = golden(name)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        from_state_dict(name.split("_")[0], state, **(dict(num_heads=4) | wrong))


def test_wrong_architecture(golden):
    state, _, _ = golden("lightningdit")
    with pytest.raises(ValueError, match='mlp=.gelu. .architecture "sit".*would fit'):
        from_state_dict("sit", state)
    with pytest.raises(ValueError, match="is missing"):
        from_state_dict("edm2", state)
    with pytest.raises(ValueError, match="is missing"):
        from_state_dict("sit", golden("edm2")[0])
    with pytest.raises(ValueError, match="is it DDT"):
        from_state_dict(
            "sit",
            {
                k.replace("adaLN_modulation.0", "adaLN_modulation.1"): v
                for k, v in golden("ddt")[0].items()
            },
        )
    with pytest.raises(ValueError, match="one of dit, sit"):
        from_state_dict("vit", state)


def test_unknown_missing_and_misshaped_keys_are_all_reported(golden):
    state, _, _ = golden("sit")
    state["projectors.0.weight"] = torch.ones(3)
    del state["blocks.1.attn.proj.bias"]
    state["blocks.1.mlp.fc2.weight"] = torch.ones(48, 96)
    with pytest.raises(ValueError) as caught:
        from_state_dict("sit", state, num_heads=4)
    text = str(caught.value)
    assert 'projectors.0.weight (architecture "repa" would fit)' in text
    assert "missing:\n    blocks.1.attn.proj.bias" in text
    assert "blocks.1.mlp.fc2.weight is (48, 96) in the file, (48, 192) in the network" in text


def test_what_the_weights_do_not_show_is_asked_for(golden):
    state, _, _ = golden("sit")
    with pytest.raises(ValueError, match="num_heads"):
        from_state_dict("sit", state)
    with pytest.raises(ValueError, match="no weights found"):
        from_state_dict("sit", {"epoch": 3, "opt": {}})
    with pytest.raises(ValueError, match="which"):
        from_state_dict("sit", state, which="best")


def test_sources_have_the_published_rules(golden):
    light = import_weights("lightningdit", golden("lightningdit")[0]).source
    assert light.guidance_channels == 3
    # Published: guided where its time, 0 = noise, is at least 0.125.
    assert light.guidance_interval == (0.0, 0.875)
    state = random_sit_state()
    sit = import_weights("sit", state, num_heads=4).source
    assert sit.guidance_channels == 3 and math.isclose(sit.latent_std[0], 1 / 0.18215)
    dit = import_weights("dit", state, num_heads=4).source
    assert (dit.transport, dit.transport_args) == ("VP", {"prediction": "eps"})
