import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ucgm.nn import UNet, UNetConfig

SHAPE = (1, 8, 8)
TINY = dict(channels=(16, 32), layers_per_block=1, attention=(4,), head_size=8, norm_groups=8)


def batch(n=3, dtype=torch.float32):
    x = torch.randn(n, *SHAPE, dtype=dtype)
    return x, torch.rand(n, dtype=dtype), torch.randint(0, 6, (n,))


def test_contract(randomize, tmp_path):
    net = UNetConfig(**TINY, second_time=True, guidance_input=True).build(SHAPE, 5)
    x, t, y = batch()
    assert torch.equal(net(x, t, y), torch.zeros_like(x))
    net = randomize(net)
    out = net(x, t, y)
    assert out.shape == x.shape and out.std() > 0 and torch.equal(out, net(x, t, y, t))
    for other in (net(x, t + 0.1, y), net(x, t, (y + 1) % 6), net(x, t, y, t / 2)):
        assert (other - out).abs().amax((1, 2, 3)).min() > 1e-4
    assert not torch.allclose(net(x, t, y, guidance=t + 2), out)
    net.save_pretrained(tmp_path)
    assert torch.equal(UNet.from_pretrained(tmp_path)(x, t, y, t / 2), net(x, t, y, t / 2))


def test_second_time_warm_start_is_bit_equal(randomize):
    one = randomize(UNetConfig(**TINY).build(SHAPE, 5))
    two = UNetConfig(**TINY, second_time=True).build(SHAPE, 5)
    two.load_state_dict(one.state_dict(), strict=False)
    x, t, y = batch()
    assert torch.equal(two(x, t, y, t / 2), one(x, t, y))


def test_attention_is_where_it_was_asked_for():
    net = UNetConfig(**TINY).build(SHAPE, 0)
    assert not hasattr(net.unet.down_blocks[0], "attentions")
    assert len(net.unet.down_blocks[1].attentions) == 1
    assert len(net.unet.up_blocks[0].attentions) == 2
    assert not hasattr(net.unet.up_blocks[1], "attentions")


def test_jvp_matches_finite_difference(randomize):
    net = randomize(UNetConfig(**TINY, second_time=True).build(SHAPE, 5)).double()
    x, t, y = batch(2, torch.float64)
    tangent = (torch.randn_like(x), torch.ones_like(t))

    def f(x, t):
        return net(x, t, y, t / 3)

    def at(d):
        return f(x + d * tangent[0], t + d)

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        _, derivative = torch.func.jvp(f, (x, t), tangent)
        d = 1e-5
        numeric = (8 * (at(d) - at(-d)) - (at(2 * d) - at(-2 * d))) / (12 * d)
    torch.testing.assert_close(derivative, numeric, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_is_exact(randomize):
    net = randomize(UNetConfig(**TINY).build(SHAPE, 5))
    x, t, y = batch()
    grads = []
    for _ in range(2):
        net.zero_grad()
        net(x, t, y).square().mean().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
        net.enable_gradient_checkpointing()
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_errors():
    with pytest.raises(ValueError, match="fewer channels"):
        UNetConfig(**(TINY | dict(channels=(8,) * 5))).build(SHAPE, 0)
    with pytest.raises(ValueError, match="norm_groups"):
        UNetConfig(**(TINY | dict(norm_groups=5))).build(SHAPE, 0)
