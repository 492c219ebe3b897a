"""Published networks with random weights: our forward pass reproduces theirs."""

import pytest
import torch

from ucgm.nn import DiTConfig

SWITCHES = {
    "tit": dict(family="tit"),
    "lightningdit": dict(family="lightningdit"),
    "lightningdit_qknorm_woshift": dict(family="lightningdit", qk_norm=True, shift=False),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_published_networks_load_by_name(name, golden):
    state, io, args = golden(name)
    keys = ("hidden_size", "depth", "num_heads", "patch_size")
    config = DiTConfig(**{k: args[k] for k in keys}, **SWITCHES[name])
    net = config.build((args["in_channels"], args["input_size"], args["input_size"]), 5)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not missing and set(unexpected) == {"feat_rope.freqs_cos", "feat_rope.freqs_sin"}
    with torch.no_grad():
        torch.testing.assert_close(net(io["x"], io["t"], io["y"]), io["out"], rtol=1e-5, atol=1e-5)
