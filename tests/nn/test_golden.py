"""Published networks with random weights: our forward pass reproduces theirs, in both frames."""

import pytest
import torch
from safetensors.torch import load_file

from tests.nn.conftest import GOLDEN, architecture
from ucgm.nn import from_state_dict, import_weights

NAMES = ["dit", "sit", "lightningdit", "lightningdit_qknorm_woshift", "tit", "ddt", "edm2", "jit"]
NAMES += ["rae_dit", "rae_ddt"]
REVERSED = {"sit", "lightningdit", "lightningdit_qknorm_woshift", "ddt"}


@pytest.fixture(params=NAMES)
def case(request, golden):
    state, io, args = golden(request.param)
    return request.param, from_state_dict(architecture(request.param), state, **args), io


def native_time(name, t):
    """EDM2 as published in UCGM takes t itself; its U-Net takes ln(sigma)/4."""
    return 2.68 * t - 1.59 if name == "edm2" else t


def test_native_forward(case):
    name, net, io = case
    with torch.no_grad():
        out = net.native(io["x"], native_time(name, io["t"]), io["y"])
    torch.testing.assert_close(out, io["out"], rtol=1e-5, atol=1e-5)


def test_native_forward_depends_on_every_input(case):
    name, net, io = case
    x, t, y = io["x"], native_time(name, io["t"]), io["y"]
    with torch.no_grad():
        for other in ((x + 0.1, t, y), (x, t + 0.1, y), (x, t, (y + 1) % 5)):
            change = (net.native(*other) - io["out"]).abs().amax((1, 2, 3))
            assert change.min() > 1e-3


def test_decoupled_meanflow():
    """DMFT (arXiv 2510.24474): blocks from dmf_depth 3 on and the head see s."""
    state, io = (load_file(GOLDEN / f"dmf.{part}.safetensors") for part in ("state", "io"))
    depth = dict(num_heads=4, second_time=True, decoupled_depth=3)
    logvar = {"logvar_linear.weight": torch.zeros(1, 256)}
    loaded = import_weights("repa", {"ema": state | logvar}, **depth)
    assert loaded.dropped == ("logvar_linear.weight",)
    with torch.no_grad():
        out = loaded.network(io["x"], io["t"], io["y"], io["r"])
        torch.testing.assert_close(out, io["out"], rtol=1e-5, atol=1e-5)
        other = from_state_dict("repa", state, **(depth | dict(decoupled_depth=2)))
        assert (other(io["x"], io["t"], io["y"], io["r"]) - io["out"]).abs().max() > 1e-2


@pytest.mark.parametrize("case", [n for n in NAMES if n not in ("dit", "jit")], indirect=True)
def test_our_forward_is_the_published_output_in_our_frame(case):
    """The published times and outputs, turned by hand into t = 1 noise and F = noise - data.

    Not for DiT, whose native time is a step: see test_conventions; nor for JiT, see test_jit.
    """
    name, net, io = case
    t = 1 - io["t"] if name in REVERSED else io["t"]
    sign = -1 if name in REVERSED else 1
    with torch.no_grad():
        out = net(io["x"], t, io["y"])
    torch.testing.assert_close(out, sign * io["out"], rtol=1e-5, atol=2e-5)
