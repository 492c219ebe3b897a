"""Exact networks: a Gaussian and a one-dimensional mixture, with their probability-flow maps."""

import torch

from tests.test_transport import MU, S, gaussian_field
from ucgm.sampler.plan import arrival, knots
from ucgm.transport import expand

WEIGHTS = torch.tensor([0.35, 0.45, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-1.0, 0.3, 1.4], dtype=torch.float64)
STDS = torch.tensor([0.35, 0.25, 0.5], dtype=torch.float64)


def gaussian_network(path):
    """F(x, t) of data N(MU, S^2)."""
    return lambda x, t, y=None: gaussian_field(path, x, t)


def mixture_network(path):
    """F(x, t) of the one-dimensional mixture."""

    def network(x_t, t, y=None):
        alpha, sigma = (expand(c, x_t) for c in path.coefficients(t)[:2])
        a, x = alpha[..., None], x_t[..., None]
        variance = a**2 * STDS**2 + sigma[..., None] ** 2
        residual = x - a * MEANS
        share = (WEIGHTS.log() - 0.5 * variance.log() - 0.5 * residual**2 / variance).softmax(-1)
        x_hat = (share * (MEANS + a * STDS**2 / variance * residual)).sum(-1)
        return path.target(x_hat, (x_t - alpha * x_hat) / sigma, t)

    return network


def _ends(path, t, s):
    """(alpha, sigma) at both times; time 0 is the data."""
    return [arrival(knot) for knot in knots(path, [t, s])]


def gaussian_map(path, x_t, t, s=0.0):
    """T3: the probability-flow map from t to s."""
    at, to = _ends(path, t, s)
    spread = [(sigma**2 + alpha**2 * S**2) ** 0.5 for alpha, sigma in (at, to)]
    return to[0] * MU + spread[1] / spread[0] * (x_t - at[0] * MU)


def quantile_map(path, x_t, t, s=0.0):
    """T5: the probability-flow map of the mixture, Q_s(CDF_t(x))."""

    def cdf(end, x):
        deviation = (end[0] ** 2 * STDS**2 + end[1] ** 2).sqrt()
        return (WEIGHTS * torch.special.ndtr((x[..., None] - end[0] * MEANS) / deviation)).sum(-1)

    at, to = _ends(path, t, s)
    level = cdf(at, x_t)
    low, high = torch.full_like(x_t, -20.0), torch.full_like(x_t, 20.0)
    for _ in range(70):
        middle = 0.5 * (low + high)
        above = cdf(to, middle) > level
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return 0.5 * (low + high)


ORACLES = {
    "gaussian": (gaussian_network, gaussian_map),
    "mixture": (mixture_network, quantile_map),
}


def points():
    """States (16, 1, 1, 1) that cover the noise."""
    return torch.linspace(-1.8, 1.8, 16, dtype=torch.float64).reshape(-1, 1, 1, 1)


def end_error(path, sampler, oracle="mixture"):
    """RMS error of the samples against the exact map to the data."""
    network, exact = ORACLES[oracle]
    out = sampler(network(path), points())
    return float((out - exact(path, points(), sampler.plan()[0].t)).square().mean().sqrt())


def inner_error(path, sampler, oracle="mixture"):
    """RMS error of the state at the last time of the grid: without the step to the data."""
    network, exact = ORACLES[oracle]
    *_, last = sampler.trajectory(network(path), points())
    there = exact(path, points(), sampler.plan()[0].t, last.t)
    return float((last.x_t - there).square().mean().sqrt())


def observed_order(errors):
    """Order from errors at numbers of steps that double: the last slope, or the mean of all.

    The mean because an error that changes sign with the number of steps has no slope there.
    """
    slopes = torch.tensor(errors, dtype=torch.float64).log2().diff().neg()
    return float(torch.maximum(slopes[-1], slopes.mean()))
