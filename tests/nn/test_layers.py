import pytest
import torch

from ucgm.nn import DiTConfig
from ucgm.nn.layers import RMSNorm, TokenLinear, modulate, rotate


@pytest.mark.parametrize(
    ("shape", "out_features", "bias"),
    [
        ((16, 16, 96), 288, True),
        ((2, 256, 64), 64, False),
        ((300, 64), 64, True),
        ((2, 64), 8, True),
    ],
)
def test_token_linear_is_linear(shape, out_features, bias):
    """On both sides of its thresholds: values, gradients, forward mode."""
    layer = TokenLinear(shape[-1], out_features, bias=bias)
    plain = torch.nn.Linear(shape[-1], out_features, bias=bias)
    plain.load_state_dict(layer.state_dict())
    x, tangent = torch.randn(2, *shape).unbind()
    results = []
    for module in (layer, plain):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        out.square().sum().backward()
        with torch.no_grad():
            _, derivative = torch.func.jvp(module, (x,), (tangent,))
        results.append((out, leaf.grad, module.weight.grad, derivative))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_a_large_batch_is_the_same_network(randomize):
    """512 tokens take the convolution, 16 the matrix product."""
    net = randomize(DiTConfig(size="T/2").build((1, 8, 8), 10), 0.05)
    x, t, y = torch.randn(32, 1, 8, 8), torch.rand(32), torch.randint(0, 11, (32,))
    with torch.no_grad():
        rows = torch.cat([net(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(32)])
        torch.testing.assert_close(net(x, t, y), rows, rtol=1e-4, atol=1e-5)


def test_rotation_is_relative_and_the_same_in_compiled_graphs():
    """q(m) . k(n) depends on the offset of the patches alone; norms are kept."""
    table = DiTConfig(size="N/1").build((1, 6, 6), 0).rotary.table
    q, k = torch.randn(2, 1, 12).expand(2, 36, 12).unbind()
    q, k = rotate(q, table), rotate(k, table)
    scores = (q @ k.T).view(6, 6, 6, 6)
    torch.testing.assert_close(scores[1, 2, 3, 5], scores[0, 1, 2, 4])
    torch.testing.assert_close(scores[4, 4, 4, 0], scores[1, 5, 1, 1])
    assert (scores[1, 2, 3, 5] - scores[1, 2, 5, 3]).abs() > 1e-4
    torch.testing.assert_close(q.norm(dim=-1), q[:1].norm(dim=-1).expand(36))
    torch._dynamo.reset()
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 36, 12)
    torch.testing.assert_close(compiled(x, table), rotate(x, table))
    low = rotate(x.bfloat16(), table)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), rotate(x, table), rtol=0.02, atol=0.02)


def test_norm_and_modulation():
    x = torch.randn(2, 5, 8)
    norm = RMSNorm(8, affine=True)
    torch.nn.init.constant_(norm.weight, 2.0)
    expected = 2 * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)
    low = norm.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    scale, shift = torch.randn(2, 2, 1, 8).unbind()
    torch.testing.assert_close(modulate(x, shift, scale), x * (1 + scale) + shift)
    torch.testing.assert_close(modulate(x, None, scale), x * (1 + scale))
