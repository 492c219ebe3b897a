"""One graph per network: nothing in a forward pass depends on data, dtype or Python state."""

import pytest
import torch

from ucgm.nn import DDT, DiTConfig, DiTDHConfig


def networks():
    tiny = dict(hidden_size=32, depth=2, num_heads=2, patch_size=2)
    yield DiTConfig(**tiny, second_time=True).build((3, 8, 8), 5)
    yield DiTConfig(**tiny, family="dit").build((3, 8, 8), 5)
    heads = dict(second_time=True, decoupled_depth=1, velocity_blocks=1)
    yield DiTConfig(**tiny, **heads).build((3, 8, 8), 5)
    yield DDT(8, 2, 3, 32, 2, 1, 2, num_classes=5, second_time=True, convention="reversed")
    context = dict(family="jit", context_start=1, context_tokens=3)
    yield DiTConfig(**tiny, **context, convention="jit").build((3, 8, 8), 5)
    yield DiTDHConfig(**tiny, head_width=48, head_heads=2).build((3, 8, 8), 5)


@pytest.mark.parametrize("net", list(networks()), ids=["tit", "dit", "heads", "ddt", "jit", "dh"])
def test_whole_graph(net, randomize):
    net = randomize(net)
    x, t, y = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 5])
    s = t / 2 if net.second_time else None
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    heads = dict(heads="both") if net.velocity_head else {}
    torch.testing.assert_close(compiled(x, t, y, s, **heads), net(x, t, y, s, **heads))
    out = compiled(x, t, y, s, **heads)
    (torch.cat(out) if heads else out).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_regional(randomize):
    net = randomize(DiTConfig(size="N/2").build((3, 8, 8), 5))
    x, t, y = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 5])
    expected = net(x, t, y)
    torch._dynamo.reset()
    net.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(net(x, t, y), expected)
    assert not [name for name in net.state_dict() if "_orig_mod" in name]
