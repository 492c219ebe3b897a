"""Orientation, by meaning: a native oracle that knows the data point must give it back.

The data are one point x. In each public convention the perfect native output is written down from
the publication; our F of it, inverted on our path, must be x. A wrong sign or time is off by O(1).
"""

import math

import pytest
import torch

from ucgm.nn import DDT, EDM2, DDTConfig, DiT, DiTConfig, DiTDHConfig, UNetConfig

B, SHAPE = 5, (4, 8, 8)
TINY = dict(input_size=8, hidden_size=32, depth=2, num_heads=2, num_classes=3)
REVERSED = dict(convention="reversed")


def networks():
    yield "reversed", DiT(**TINY, **REVERSED)
    yield "reversed", DDT(**TINY, **REVERSED, encoder_depth=1)
    yield "ucgm", DiT(**TINY)
    yield "ddpm", DiT(**TINY, convention="ddpm", learn_sigma=True)
    yield "edm", EDM2(8, 4, 64, (1, 2), 1, (4,), 3)
    yield "jit", DiT(**TINY, convention="jit")


def alpha_bar():
    """DDPM's linear schedule (arXiv:2006.11239): product of 1 - beta over 1000 steps."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def oracle(convention, x):
    """Perfect native network for the single data point x."""

    def flow(x_t, t, *_):
        """Time 0 noise, 1 data; x' = t x + (1 - t) z; velocity x - z."""
        return (x - x_t) / (1 - t.view(-1, 1, 1, 1))

    def ucgm(x_t, t, *_):
        """Time 1 noise; F = z - x."""
        return (x_t - x) / t.view(-1, 1, 1, 1)

    def steps(x_t, k, *_):
        """Epsilon at a step, learned variance in the other half."""
        a = alpha_bar()[k.round().long()].view(-1, 1, 1, 1)
        eps = (x_t - a.sqrt() * x) / (1 - a).sqrt()
        return torch.cat([eps, torch.full_like(eps, 7.0)], 1)

    def edm(x_in, c_noise, *_):
        """F with D = c_skip x_noisy + c_out F = x (arXiv:2206.00364, table 1), sigma_data 1/2."""
        sigma = torch.exp(4 * c_noise).view(-1, 1, 1, 1)
        r = (sigma**2 + 0.25).sqrt()
        return (x - 0.25 / r**2 * (x_in * r)) / (sigma * 0.5 / r)

    def jit(x_t, t, *_):
        """The data themselves (arXiv:2511.13720)."""
        return x

    return {"reversed": flow, "ucgm": ucgm, "ddpm": steps, "edm": edm, "jit": jit}[convention]


def path(convention, t):
    """Alpha, sigma of our path and the coefficients of F on (x, z)."""
    if convention == "ddpm":
        alpha = torch.exp(-19.9 * t**2 / 4 - 0.1 * t / 2)
        return alpha, (1 - alpha**2).sqrt(), 0 * t, 1 + 0 * t
    if convention == "edm":
        n = torch.exp(4 * (2.68 * t - 1.59))
        r = (n**2 + 0.25).sqrt()
        return 1 / r, n / r, n / (0.5 * r), -0.5 / r
    return 1 - t, t, -1 + 0 * t, 1 + 0 * t


def times(convention):
    if convention == "ddpm":
        minus_log = -0.5 * alpha_bar()[[30, 200, 500, 800, 990]].log()
        return (-0.05 + (0.0025 + 4 * 4.975 * minus_log).sqrt()) / (2 * 4.975)
    return torch.tensor([0.05, 0.3, 0.5, 0.7, 0.95], dtype=torch.float64)


@pytest.mark.parametrize(("convention", "net"), list(networks()))
def test_data_are_recovered(convention, net, monkeypatch):
    net = net.double()
    x, z = torch.randn(2, B, *SHAPE, dtype=torch.float64)
    t = times(convention)
    alpha, sigma, alpha_pred, sigma_pred = (c.view(-1, 1, 1, 1) for c in path(convention, t))
    monkeypatch.setattr(net, "native", oracle(convention, x))
    field = net(alpha * x + sigma * z, t, torch.zeros(B, dtype=torch.int64))
    assert field.shape == x.shape
    torch.testing.assert_close(field, alpha_pred * x + sigma_pred * z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", [net for name, net in networks() if name == "reversed"])
def test_reversed_networks_against_native(net, randomize):
    net = randomize(net)
    x, t = torch.randn(B, *SHAPE), torch.rand(B)
    y = torch.randint(0, 4, (B,))
    assert torch.equal(net(x, t, y), -net.native(x, 1 - t, y))


def test_ddpm_network_against_native(randomize):
    net = randomize(DiT(**TINY, convention="ddpm", learn_sigma=True)).double()
    x, y = torch.randn(B, *SHAPE, dtype=torch.float64), torch.randint(0, 4, (B,))
    steps = torch.tensor([30.0, 200.0, 500.0, 800.0, 990.0], dtype=torch.float64)
    raw = net.native(x, steps, y)
    assert raw.shape == (B, 8, 8, 8)
    torch.testing.assert_close(net(x, times("ddpm"), y), raw[:, :4], rtol=1e-6, atol=1e-6)


def test_steps_follow_the_signal_level_and_stay_in_range():
    net = DiT(**TINY, convention="ddpm")
    t = torch.linspace(0, 1, 400)
    k = net.native_time(t)
    assert k.min() == 0 and 990 < k.max() <= 999 and (k[1:] >= k[:-1]).all()
    # 1000 t - 1/2 is the midpoint rule; the discrete schedule decays a little faster.
    assert (k - (1000 * t - 0.5)).abs().max() < 6
    value, rate = torch.func.jvp(net.native_time, (torch.tensor([0.4]),), (torch.ones(1),))
    assert 380 < value < 400 and math.isclose(rate.item(), 1000, rel_tol=0.02)


def test_second_time_of_a_reversed_network_warm_starts(randomize):
    one = randomize(DiT(**TINY, **REVERSED))
    two = DiT(**TINY, **REVERSED, second_time=True)
    two.load_state_dict(one.state_dict(), strict=False)
    x, t, y = torch.randn(B, *SHAPE), torch.rand(B), torch.zeros(B, dtype=torch.int64)
    assert torch.equal(two(x, t, y, t / 2), one(x, t, y))


UNET = dict(channels=(16, 32), layers_per_block=1, attention=(), head_size=8, norm_groups=8)


@pytest.mark.parametrize(
    "config",
    [
        DiTConfig(size="N/2", convention="jit", learn_sigma=True, second_time=True),
        DDTConfig(size="N/2", convention="jit", encoder_depth=1),
        DiTDHConfig(size="N/2", convention="jit", head_width=64, head_heads=2),
        UNetConfig(**UNET, convention="jit"),
    ],
)
def test_jit_networks_say_the_data(config, randomize):
    """F = (x_t - x) / max(t, 0.05), x at native time 1 - t; x = 0 at the start."""
    net = config.build(SHAPE, 3)
    x, y = torch.randn(B, *SHAPE), torch.randint(0, 4, (B,))
    t = torch.tensor([0.0, 0.02, 0.05, 0.5, 1.0])
    over = torch.tensor([0.05, 0.05, 0.05, 0.5, 1.0]).view(-1, 1, 1, 1)
    assert torch.equal(net(x, t, y), x / over)
    data = randomize(net).native(x, 1 - t, y)
    assert data.std() > 1e-3 and torch.equal(net(x, t, y), (x - data) / over)


def test_jit_in_forward_mode_and_in_bfloat16(randomize):
    """dF/dt at x_t = (1 - t) x + t z along the path, against differences, above the floor."""
    net = randomize(DiT(**TINY, convention="jit", second_time=True)).double()
    x, v = torch.randn(2, B, *SHAPE, dtype=torch.float64)
    t, y = torch.linspace(0.1, 0.9, B, dtype=torch.float64), torch.zeros(B, dtype=torch.int64)

    def along(d):
        return net(x + d * v, t + d, y, t / 2 - 0.3 * d)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
        zero, one = torch.tensor(0.0).double(), torch.tensor(1.0).double()
        rate = torch.func.jvp(along, (zero,), (one,))[1]
        numeric = (8 * (along(1e-4) - along(-1e-4)) - (along(2e-4) - along(-2e-4))) / 12e-4
    torch.testing.assert_close(rate, numeric, rtol=1e-7, atol=1e-8)
    low = net.bfloat16()(x.bfloat16(), t.float(), y)
    assert low.dtype == torch.bfloat16 and torch.isfinite(low).all()


def test_unknown_convention():
    with pytest.raises(ValueError, match="reversed"):
        DiT(**TINY, convention="sideways")
