import itertools

import pytest
import torch

from ucgm.nn import DiTConfig
from ucgm.nn.embeddings import PatchEmbedder, unpatchify
from ucgm.nn.layers import make_norm, modulate, rotate


@pytest.mark.parametrize(
    ("patch", "channels", "side"), [(1, 4, 3), (2, 3, 4), (2, 4, 2), (4, 1, 8)]
)
def test_patches_there_and_back(patch, channels, side):
    """Pixel by pixel: which token and which place in it; values, gradients, forward mode."""
    grid = side // patch
    embedder = PatchEmbedder(channels, channels * patch**2, patch)
    with torch.no_grad():
        embedder.proj.weight.copy_(torch.eye(channels * patch**2).view_as(embedder.proj.weight))
        embedder.proj.bias.zero_()
    x, tangent = torch.randn(2, 2, channels, side, side).unbind()

    def back(tokens):
        channel_last = tokens.unflatten(-1, (channels, -1)).transpose(-1, -2).flatten(-2)
        return unpatchify(channel_last, patch, grid)

    tokens = embedder(x)
    for i, j, c in itertools.product(range(side), range(side), range(channels)):
        token = i // patch * grid + j // patch
        place = (c * patch + i % patch) * patch + j % patch
        assert torch.equal(tokens[:, token, place], x[:, c, i, j])
    assert torch.equal(back(tokens), x)
    leaf = x.clone().requires_grad_()
    (back(embedder(leaf)) * tangent).sum().backward()
    torch.testing.assert_close(leaf.grad, tangent)
    with torch.no_grad():
        _, derivative = torch.func.jvp(lambda x: back(embedder(x)), (x,), (tangent,))
    torch.testing.assert_close(derivative, tangent)


def test_a_large_batch_is_the_same_network(randomize):
    """32 rows at once and one by one."""
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
    exact = rotate(x.bfloat16().double(), table.bfloat16().double())
    assert torch.equal(low, exact.bfloat16()), "rounded once"
    view = table[:]
    assert torch.equal(rotate(x.bfloat16(), view), low) and view.turns.dtype == torch.bfloat16
    assert rotate(x.half(), view).dtype == torch.half and not hasattr(table, "turns")


def test_norm_and_modulation():
    x = torch.randn(2, 5, 8)
    norm = make_norm("rms", 8, affine=True)
    torch.nn.init.constant_(norm.weight, 2.0)
    expected = 2 * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)
    low = norm.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    scale, shift = torch.randn(2, 2, 1, 8).unbind()
    torch.testing.assert_close(modulate(x, shift, scale), x * (1 + scale) + shift)
    torch.testing.assert_close(modulate(x, None, scale), x * (1 + scale))
