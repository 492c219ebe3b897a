"""T1 to T3: the algebra of every transport, and the Gaussian closed forms."""

import pytest
import torch

from ucgm.transport import (
    EDM,
    VP,
    Linear,
    LoudLinear,
    Random,
    Trig,
    TrigLinear,
    XPrediction,
    expand,
)

TRANSPORTS = [
    Linear(),
    Trig(),
    LoudLinear(2.0),
    TrigLinear(),
    EDM(),
    VP("eps"),
    VP("v"),
    VP("x"),
    Random(),
    XPrediction(Trig()),
]
IDS = [str(p) for p in TRANSPORTS]
each_transport = pytest.mark.parametrize("path", TRANSPORTS, ids=IDS)
N = 16


@pytest.fixture
def numbers():
    g = torch.Generator().manual_seed(1)
    x, z = (torch.randn(N, 2, 3, 3, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.rand(N, generator=g, dtype=torch.float64) * 0.98 + 0.01
    return x, z, t, t * torch.rand(N, generator=g, dtype=torch.float64)


@each_transport
def test_split_inverts_mix_and_target(path, numbers):
    x, z, t, _ = numbers
    x_t, target = path.mix(x, z, t), path.target(x, z, t)
    x_hat, z_hat = path.split(x_t, target, t)
    torch.testing.assert_close(x_hat, x, rtol=0, atol=1e-11)
    torch.testing.assert_close(z_hat, z, rtol=0, atol=1e-11)
    any_field = torch.randn_like(x)
    torch.testing.assert_close(path.mix(*path.split(x_t, any_field, t), t), x_t)


@each_transport
def test_flow_map(path, numbers):
    x, z, t, s = numbers
    a, b = path.map(t, t)
    torch.testing.assert_close(a, torch.ones_like(t))
    torch.testing.assert_close(b, torch.zeros_like(t))
    jumped = path.jump(path.mix(x, z, t), path.target(x, z, t), t, s)
    torch.testing.assert_close(jumped, path.mix(x, z, s), rtol=0, atol=1e-11)
    to_data = path.jump(path.mix(x, z, t), path.target(x, z, t), t, torch.zeros_like(t))
    torch.testing.assert_close(to_data, x, rtol=0, atol=1e-11)


@each_transport
def test_rate_is_the_slope_of_b(path, numbers):
    t = numbers[2]
    h = 1e-5
    slope = (path.map(t + h, t)[1] - path.map(t - h, t)[1]) / (2 * h)
    torch.testing.assert_close(path.rate(t), slope, rtol=1e-6, atol=1e-8)


@each_transport
def test_velocity_is_the_slope_of_the_path(path, numbers):
    x, z, t, _ = numbers
    h = 1e-5
    slope = (path.mix(x, z, t + h) - path.mix(x, z, t - h)) / (2 * h)
    velocity = path.velocity(path.mix(x, z, t), path.target(x, z, t), t)
    torch.testing.assert_close(velocity, slope, rtol=1e-6, atol=1e-7)


@each_transport
def test_ends(path):
    ends = path.coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.sigma[0] < 5e-3 and abs(ends.sigma[1] - 1) < 1e-3
    assert abs(ends.alpha[1]) < 0.05


@each_transport
def test_log_snr_falls_and_inverts(path):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    log_snr = path.log_snr(t)
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close(path.time_at_log_snr(log_snr), t, rtol=0, atol=1e-9)


MU, S = 0.7, 0.6  # data ~ N(MU, S^2)


def gaussian_estimates(path, x_t, t):
    """T2: conditional means of data and noise at x_t."""
    alpha, sigma, *_ = (expand(c, x_t) for c in path.coefficients(t))
    variance = sigma**2 + alpha**2 * S**2
    residual = x_t - alpha * MU
    return MU + alpha * S**2 / variance * residual, sigma / variance * residual


def gaussian_field(path, x_t, t):
    """The conditional mean of the target F at x_t."""
    return path.target(*gaussian_estimates(path, x_t, t), t)


def gaussian_flow(path, x_t, t, s):
    """T3: the probability-flow map from t to s."""
    at, to = ([expand(c, x_t) for c in path.coefficients(v)] for v in (t, s))
    deviation = [torch.sqrt(c[1] ** 2 + c[0] ** 2 * S**2) for c in (at, to)]
    return to[0] * MU + deviation[1] / deviation[0] * (x_t - at[0] * MU)


@each_transport
def test_gaussian_field_is_the_regression_of_the_target(path):
    g = torch.Generator().manual_seed(2)
    n = 400_000
    x = MU + S * torch.randn(n, generator=g, dtype=torch.float64)
    z = torch.randn(n, generator=g, dtype=torch.float64)
    t = torch.full((n,), 0.4, dtype=torch.float64)
    x_t, target = path.mix(x, z, t), path.target(x, z, t)
    residual = target - gaussian_field(path, x_t, t)
    # The optimum leaves a residual without mean and without correlation to the input.
    scale = residual.std()
    assert abs(residual.mean()) < 4 * scale / n**0.5
    assert abs((residual * (x_t - x_t.mean())).mean()) < 4 * scale * x_t.std() / n**0.5


@each_transport
def test_gaussian_flow_solves_the_velocity_field(path, numbers):
    x, z, t, _ = numbers
    x_t = path.mix(MU + S * x, z, t)
    h = 1e-5
    slope = (gaussian_flow(path, x_t, t, t + h) - gaussian_flow(path, x_t, t, t - h)) / (2 * h)
    velocity = path.velocity(x_t, gaussian_field(path, x_t, t), t)
    torch.testing.assert_close(velocity, slope, rtol=1e-6, atol=1e-7)
