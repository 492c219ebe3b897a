"""JiT (arXiv:2511.13720): published weights and samples, and what the context tokens meet."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from tests.nn.conftest import GOLDEN
from ucgm.nn import DiTConfig, import_weights
from ucgm.nn.pretrained.layouts import read_settings
from ucgm.nn.pretrained.published import ARCHITECTURES, published_at
from ucgm.runs.imported import config_of
from ucgm.sampler import Grid
from ucgm.transport import Linear, LoudLinear


@pytest.fixture(scope="module")
def loaded():
    """As published: averages of two lengths beside the weights, every name under net."""
    state = load_file(GOLDEN / "jit.state.safetensors")
    nets = {"model": 1.0, "model_ema1": 0.0, "model_ema2": 2.0}
    file = {k: {f"net.{n}": v + more for n, v in state.items()} for k, more in nets.items()}
    return import_weights("jit", {"epoch": 599, **file})


def test_the_weights_say_every_setting(loaded):
    assert loaded.shape == (3, 16, 16) and loaded.num_classes == 5
    assert loaded.dropped == ("epoch", "model", "model_ema2")
    config = loaded.network.config
    names = "patch_size hidden_size depth num_heads bottleneck context_tokens context_start"
    assert [config[name] for name in names.split()] == [4, 48, 4, 4, 8, 3, 1]


def test_the_published_output_in_our_frame(loaded):
    """At their times 0.05, 0.4, 0.93 noise is above the floor of 0.05: x_hat = x_t - t F."""
    io = load_file(GOLDEN / "jit.io.safetensors")
    noise = 1 - io["t"]
    with torch.no_grad():
        f = loaded.network(io["x"], noise, io["y"])
    x_hat = io["x"] - noise.view(-1, 1, 1, 1) * f
    torch.testing.assert_close(x_hat, io["out"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "solver", "interval", "calls"),
    [
        ("out_heun", "heun", None, 11),
        ("out_euler", "ucgm", None, 6),
        ("out_heun_from0", "heun", (0.3001, 1.0), 11),
    ],
)
def test_published_samples(loaded, name, solver, interval, calls):
    """Six intervals, guidance 2.9 where their time is in (0.1, 1), or in [0, 0.7)."""
    io = load_file(GOLDEN / "jit_sampler.io.safetensors")
    config = config_of("jit", loaded)
    assert config.sampler.nfe == 99 and config.sampler.transport == Linear()
    sampler = replace(config.sampler, steps=6, solver=solver)
    guidance = replace(config.guidance, scale=2.9, interval=interval or config.guidance.interval)
    assert sampler.nfe == calls
    samples = sampler(guidance.apply(loaded.network, 5), io["z"], io["y"])
    torch.testing.assert_close(samples, io[name], rtol=0, atol=1e-4)


def published_heun(network, z, y, scale, intervals=6):
    """JiT's sampler by hand, in its own time and on its own path."""

    def velocity(z, t):
        times = torch.full((len(z),), t)
        good, bad = (network.native(z, times, labels) for labels in (y, torch.full_like(y, 5)))
        return (bad + (scale if t > 0.1 else 1.0) * (good - bad) - z) / max(1 - t, 0.05)

    grid = [i / intervals for i in range(intervals + 1)]
    for t, to in pairwise(grid):
        v = velocity(z, t)
        end = z + (to - t) * v
        z = end if to == 1 else z + (to - t) * (v + velocity(end, to)) / 2
    return z


@torch.no_grad()
def test_noise_of_standard_deviation_two(loaded):
    """JiT at 512 pixels: z = t x + (1 - t) 2 e, on the path LoudLinear."""
    io = load_file(GOLDEN / "jit_sampler.io.safetensors")
    once = published_heun(loaded.network, io["z"], io["y"], 2.9)
    torch.testing.assert_close(once, io["out_heun"], rtol=0, atol=1e-5)
    state = loaded.network.state_dict()
    twice = import_weights("jit", state, noise_scale=2.0)
    config = config_of("jit", twice)
    assert config.sampler.transport == config.objective.transport == LoudLinear(2.0)
    guided = replace(config.guidance, scale=2.9).apply(twice.network, 5)
    samples = replace(config.sampler, steps=6)(guided, io["z"], io["y"])
    expected = published_heun(loaded.network, 2 * io["z"], io["y"], 2.9)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-5)
    assert (samples - once).abs().max() > 0.05
    with torch.device("meta"):
        large = DiTConfig(size="N/32", family="jit", convention="jit").build((3, 64, 64), 5)
    assert read_settings("jit", large.state_dict(), {})["noise_scale"] == (2.0, "")
    with pytest.raises(ValueError, match="convention jit"):
        DiTConfig(size="N/4", noise_scale=2.0).build((3, 16, 16), 5)


def test_guidance_of_the_published_grid():
    """At their time 0.1, the sixth of 51 points, guidance is still off: theirs is open."""
    base = ARCHITECTURES["jit"]
    times = Grid(**base.source.sampler["grid"]).times(50)
    torch.testing.assert_close(times, 1 - torch.linspace(0, 1, 51, dtype=torch.float64))
    low, high = base.source.guidance_interval
    assert [low <= t <= high for t in times[4:7].tolist()] == [False, False, True]
    for width, scales in {768: (3.0, 3.0), 1024: (2.4, 2.5), 1280: (2.2, 2.3)}.items():
        config = replace(base.config, hidden_size=width)
        found = (published_at("jit", base.source, config, side) for side in (256, 512))
        assert tuple(source.guidance_scale for source in found) == scales


@pytest.mark.parametrize("part", ["exit_layer", "velocity_blocks", "decoupled_depth"])
def test_the_other_parts_of_a_dit(part, randomize):
    """Heads before, at and after the block where the context enters: the map stays the same."""
    numbers = dict(hidden_size=48, depth=4, num_heads=4, patch_size=4, context_tokens=3)
    small = DiTConfig(family="jit", convention="jit", context_start=2, bottleneck=8, **numbers)
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([0.3, 0.9]), torch.tensor([0, 4])
    plain = randomize(small.build((3, 16, 16), 5))
    for number in (1, 2, 3):
        if part == "velocity_blocks" and number > 1:
            with pytest.raises(ValueError, match="context_start in 0 to"):
                replace(small, velocity_blocks=number).build((3, 16, 16), 5)
            continue
        config = replace(small, second_time=part == "decoupled_depth", **{part: number})
        network = config.build((3, 16, 16), 5)
        network.load_state_dict(plain.state_dict(), strict=False)
        with torch.no_grad():
            expected = plain(x, t, y)
            torch.testing.assert_close(network(x, t, y), expected, rtol=1e-5, atol=1e-5)
            if part != "decoupled_depth":
                first, second = network(x, t, y, heads="both")
                torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
                assert second.shape == first.shape and (second - first).abs().max() > 1e-3
            else:
                moved = network(x, t, y, 0.5 * t)
                assert (moved - expected).abs().max() > 1e-3
