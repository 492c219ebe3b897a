import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ucgm.nn import EDM2, EDM2Config
from ucgm.nn.edm2 import MPConv, mp_cat, mp_silu, mp_sum, unit

SHAPE = (4, 8, 8)
TINY = dict(model_channels=64, channel_mult=(1, 2), num_blocks=1, attention=(4,))


@pytest.fixture
def net():
    net = EDM2Config(**TINY).build(SHAPE, 5)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.7)
    return net.eval()


def batch(n=4, dtype=torch.float32):
    x = torch.randn(n, *SHAPE, dtype=dtype)
    return x, torch.rand(n, dtype=dtype), torch.randint(0, 6, (n,))


def magnitude(x):
    return x.float().square().mean().sqrt().item()


def test_zero_at_start():
    net = EDM2Config(**TINY).build(SHAPE, 5)
    x, t, y = batch()
    assert torch.equal(net(x, t, y), torch.zeros_like(x))


def test_operations_preserve_magnitude():
    a, b = torch.randn(2, 64, 96, 8, 8).unbind()
    assert magnitude(unit(5 * a, 1)) == pytest.approx(1, abs=1e-3)
    assert magnitude(mp_silu(a)) == pytest.approx(1, abs=0.01)
    assert magnitude(mp_sum(a, b, 0.3)) == pytest.approx(1, abs=0.01)
    # Equal shares: both inputs contribute the same whatever their widths.
    cat = mp_cat(a, b[:, :32])
    assert magnitude(cat) == pytest.approx(1, abs=0.01)
    assert cat[:, :96].square().sum() / cat[:, 96:].square().sum() == pytest.approx(1, abs=0.02)
    conv = MPConv(96, 64, 3)
    with torch.no_grad():
        conv.weight.mul_(30)
        assert magnitude(conv(a)[..., 1:-1, 1:-1]) == pytest.approx(1, abs=0.05)


def test_activations_stay_at_unit_magnitude(net):
    seen = []
    blocks = [*net.enc.values(), *net.dec.values()]
    for block in blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(magnitude(out)))
    net(*batch(16))
    assert len(seen) == len(blocks)
    assert all(0.6 < value < 1.6 for value in seen), seen


def test_training_keeps_weights_at_unit_magnitude(net):
    net.train()
    conv = net.enc["8x8_block0"].conv_res0
    with torch.no_grad():
        conv.weight.mul_(3)
        net(*batch())
        assert magnitude(conv.weight) > 2, "a pass without gradients changes nothing"
    x, t, y = batch()
    first = net(x, t, y)
    second = net(x, t, y)
    (first + second).square().mean().backward()
    assert magnitude(conv.weight) == pytest.approx(1, abs=1e-3)
    assert conv.weight.grad.abs().max() > 0
    # Normalised weights have no gradient along themselves.
    grad, weight = (v.detach().flatten(1) for v in (conv.weight.grad, conv.weight))
    along = (grad * weight).sum(1).abs()
    assert (along < 2e-3 * grad.norm(dim=1) * weight.norm(dim=1)).all()


def test_null_class_is_the_zero_vector(net):
    x, t, _ = batch()
    null = torch.full((4,), 5)
    noise = net.emb_noise(net.emb_fourier(net.native_time(t)))
    expected = mp_silu(noise * 0.5**0.5)
    torch.testing.assert_close(net.embed(net.native_time(t), null, None), expected)
    assert (net(x, t, null) - net(x, t, null * 0)).abs().max() > 1e-3


def test_second_time_warm_start_and_effect(net):
    two = EDM2Config(**TINY, second_time=True).build(SHAPE, 5).eval()
    missing, unexpected = two.load_state_dict(net.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("h_") for key in missing)
    x, t, y = batch()
    with torch.no_grad():
        assert torch.equal(two(x, t, y, t / 2), net(x, t, y))
        two.h_gain.fill_(1.0)
        assert not torch.allclose(two(x, t, y, t / 2), net(x, t, y))
        assert torch.equal(two(x, t, y), two(x, t, y, t))


def test_jvp_matches_finite_difference():
    net = EDM2Config(**TINY, second_time=True).build(SHAPE, 5).double().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.5)
    x, t, y = batch(2, torch.float64)
    tangent = (torch.randn_like(x), torch.ones_like(t))

    def f(x, t):
        return net(x, t, y, t / 3)

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        _, derivative = torch.func.jvp(f, (x, t), tangent)
        d = 1e-4

        def at(k):
            return f(x + k * d * tangent[0], t + k * d)

        numeric = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * d)
    torch.testing.assert_close(derivative, numeric, rtol=1e-6, atol=1e-7)


def test_gradient_checkpointing_save_and_load(net, tmp_path):
    x, t, y = batch()
    net.enable_gradient_checkpointing()
    net(x, t, y).square().mean().backward()
    grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    net.disable_gradient_checkpointing()
    net(x, t, y).square().mean().backward()
    for a, b in zip(grads, (p.grad for p in net.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(a, b)
    net.save_pretrained(tmp_path)
    assert torch.equal(EDM2.from_pretrained(tmp_path)(x, t, y), net(x, t, y))


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (dict(model_channels=None), "give size, or also model_channels"),
        (dict(model_channels=100), "multiple of 64"),
        (dict(channel_mult=(1, 2, 3, 4, 5)), "fewer channel_mult"),
    ],
)
def test_errors(change, remedy):
    with pytest.raises(ValueError, match=remedy):
        EDM2Config(**(TINY | change)).build(SHAPE, 5)
    with pytest.raises(ValueError, match="no guidance input"):
        EDM2Config(**TINY).build(SHAPE, 0)(torch.zeros(1, *SHAPE), torch.ones(1), guidance=1.0)
