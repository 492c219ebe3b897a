"""The networks of 2025 and 2026 with weights by formula: RiT, RAEv2, MeanFlow's, iMF, pMF.

Our networks reproduced the outputs of the published classes with random weights, which are large
files, to 1e-6 of their scale (pMF: 1.5e-5 of 80); the numbers here are of the same networks with
weights by formula, under the published names and shapes.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.nn.conftest import GOLDEN
from ucgm.nn import DiTConfig, MiTConfig, RAEv2Config, from_state_dict, import_weights
from ucgm.nn.cost import count_parameters
from ucgm.runs.imported import config_of
from ucgm.sampler import Guidance
from ucgm.transport import LoudLinear

CASES = json.loads((GOLDEN / "modern.json").read_text())
INPUTS = {"x", "t", "y", "r", "h", "omega", "t_min", "t_max", "z_cls"}


def weights(shapes):
    """Weights of a sensible size: of layers by their inputs, of norms around 1."""
    state = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        j = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        wave = torch.sin(0.7 * j * j + 1.3 * j + index + 1).float().reshape(shape)
        learned = "table" in name or "tokens" in name or name == "pos_embed"
        if len(shape) > 1 and not learned:
            wave *= 1.5 * wave[0].numel() ** -0.5
        elif "norm" in name:
            wave = 1 + 0.3 * wave
        else:
            wave *= 0.7
        state[name] = wave
    return state


@pytest.fixture(params=CASES)
def case(request):
    """Name, network, published inputs, and what comes out."""
    name, case = request.param, CASES[request.param]
    every = load_file(GOLDEN / "modern.safetensors")
    io = {k.partition(".")[2]: v for k, v in every.items() if k.startswith(f"{name}.")}
    inputs = {key: value for key, value in io.items() if key in INPUTS}
    net = from_state_dict(name, weights(case["shapes"]), **case["args"])
    return name, net, inputs, {key: value for key, value in io.items() if key not in INPUTS}


@torch.no_grad()
def told(net, inputs):
    out = net.native(**inputs)
    return out if isinstance(out, dict) else {"out": out}


def test_native_forward(case):
    name, net, inputs, expected = case
    out = told(net, inputs)
    assert out.keys() == expected.keys()
    for key, value in expected.items():
        size = value.abs().max().item()
        torch.testing.assert_close(out[key], value, rtol=1e-5, atol=1e-5 * max(size, 1))
    for key in inputs.keys() - ({"t", "r"} if name == "imf" else {"r"} if "h" in inputs else set()):
        moved = (inputs[key] + 1) % 5 if key == "y" else inputs[key] + 0.1
        after = told(net, inputs | {key: moved})
        assert all((after[k] - v).abs().max() > 1e-3 for k, v in out.items()), key


@pytest.mark.parametrize("case", ["raev2_ddt_ig", "raev2_dit_ig"], indirect=True)
@torch.no_grad()
def test_raev2_in_our_frame(case):
    """F = (x_t - x)/max(t, 0.05); internal guidance costs one pass."""
    _, net, io, expected = case
    x, t, y = io["x"], io["t"], io["y"]
    assert net.exits
    pair = net(x, t, y, heads="both")
    for f, name in zip(pair, ("out", "out_base"), strict=True):
        over = t.clamp(min=0.05).view(-1, 1, 1, 1)
        torch.testing.assert_close(f, (x - expected[name]) / over, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(net(x, t, y, heads="exit"), pair[1])
    passes = []
    net.final_layer.register_forward_hook(lambda *_: passes.append(1))
    guided = Guidance(1.78, (0.1, 1.0), kind="internal").apply(net, 5)(x, t, y)
    assert len(passes) == 2  # of the rows at t = 0.05, and of the others
    inside = (t >= 0.1).view(-1, 1, 1, 1)
    wanted = torch.where(inside, pair[1] + 1.78 * (pair[0] - pair[1]), pair[0])
    torch.testing.assert_close(guided, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", ["imf", "pmf"], indirect=True)
@torch.no_grad()
def test_one_published_step(case):
    """z - u(z; h = 1) under the published guidance is what the imported run samples."""
    name, net, io, _ = case
    loaded = import_weights(name, weights(CASES[name]["shapes"]), **CASES[name]["args"])
    config = config_of(name, loaded)
    assert config.guidance == Guidance(7.0, (0.2, 0.7), kind="input")
    z, y, one = io["x"], io["y"], torch.ones(3)
    u = net.native(z, one, y, one, 7 * one, 0.2 * one, 0.7 * one)["out"]
    samples = config.sampler(config.guidance.apply(loaded.network, 5), z, y)
    torch.testing.assert_close(samples, z - u, rtol=1e-5, atol=1e-4)
    pair = net(z, one, y, 0 * one, torch.stack([7 * one, 0.2 * one, 0.7 * one], 1), heads="both")
    named = net.native(z, one, y, r=0 * one, omega=7 * one, t_min=0.2 * one, t_max=0.7 * one)
    torch.testing.assert_close(pair, (named["out"], named["out_v"]))


@torch.no_grad()
def test_noise_of_pmf():
    """With noise of deviation 2 the public network sees (1 - t) x + 2 t z, which is twice ours."""
    args, state = CASES["pmf"]["args"], weights(CASES["pmf"]["shapes"])
    plain, loud = (from_state_dict("pmf", state, **args, noise_scale=n) for n in (1.0, 2.0))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.3, 0.8])
    y, s = torch.tensor([1, 5]), torch.tensor([0.0, 0.5])
    public = loud.native(2 * x, t, y, r=s)
    assert torch.equal(public["out"], plain.native(2 * x, t, y, r=s)["out"])
    torch.testing.assert_close(loud(x, t, y, s), public["out"] / 2, rtol=1e-5, atol=1e-4)
    config = config_of("pmf", import_weights("pmf", state, **args, noise_scale=2.0))
    assert config.sampler.transport == LoudLinear(2.0)


def test_rit_with_the_class_token(case):
    name, net, io, _ = case
    if name == "rit_cls":
        with pytest.raises(ValueError, match="give z_cls"):
            net(io["x"], io["t"], io["y"])
    with torch.device("meta"):
        whole = DiTConfig(size="XL/1", family="rit", convention="jit", feature_token=True)
        assert count_parameters(whole.build((384, 16, 16), 1000)) == 676_996_416


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MiTConfig(size="N/2"), (4, 8, 8)),
        (MiTConfig(size="N/4", family="pmf", bottleneck=8), (3, 16, 16)),
        (RAEv2Config(size="N/1", head_width=64, head_heads=2, exit_layer=1), (8, 4, 4)),
        (RAEv2Config(size="N/1", second_time=True, guidance_input=True), (8, 4, 4)),
    ],
)
@pytest.mark.parametrize("classes", [5, 0])
def test_new_networks(config, shape, classes):
    """A new network says F = 0, or the data 0, and its gradient reaches every head."""
    net = config.build(shape, classes)
    x, t, s = torch.randn(2, *shape), torch.tensor([0.3, 0.9]), torch.tensor([0.1, 0.9])
    y = torch.tensor([1, classes]) if classes else None
    two = net.velocity_head or net.exits
    times = s if config.second_time else None
    out = net(x, t, y, times, heads="both") if two else (net(x, t, y, times),)
    for f in out:
        said = x / t.view(-1, 1, 1, 1) if net.convention == "clean" else torch.zeros_like(x)
        torch.testing.assert_close(f, said)
    sum(f.square().sum() for f in out).backward()
    heads = [n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert sum("linear.bias" in name for name in heads) == (
        0 if net.convention == "ucgm" else 2 if two else 1
    )


def test_refusals():
    with pytest.raises(ValueError, match="size must be one of N, B, M"):
        MiTConfig(size="H/2").build((4, 8, 8), 5)
    with pytest.raises(ValueError, match="velocity_blocks 5 must lie in 1 to depth 4"):
        MiTConfig(size="N/2", velocity_blocks=5).build((4, 8, 8), 5)
    with pytest.raises(ValueError, match="a MiT has second_time"):
        MiTConfig(size="N/2", guidance_input=False).build((4, 8, 8), 5)
    with pytest.raises(ValueError, match="exit_layer 3 must lie in 1 to depth 2"):
        RAEv2Config(size="N/1", exit_layer=3).build((8, 4, 4), 5)
    with pytest.raises(ValueError, match="these are not the weights of imf"):
        from_state_dict("imf", weights(CASES["meanflow_sit"]["shapes"]))
