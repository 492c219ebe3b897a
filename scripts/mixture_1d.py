"""A mixture of two Gaussians on the line, in closed form on every path.

Its marginals, the conditional mean of F (the field), M-estimates of it under the robust losses, and
the probability-flow map, which takes quantile to quantile.
"""

import torch
from torch import Tensor

from ucgm.objective import preset
from ucgm.transport import Transport

WEIGHTS, MEANS, DEVIATION = (0.4, 0.6), (-1.0, 1.0), 0.5
MIXTURE = torch.tensor([WEIGHTS, MEANS], dtype=torch.float64)


def parts(path: Transport, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, means, deviations) of the marginal's two parts at times (B,)."""
    c = path.coefficients(t.double())
    deviation = torch.sqrt(c.alpha**2 * DEVIATION**2 + c.sigma**2)
    return MIXTURE[0], c.alpha[:, None] * MIXTURE[1], deviation[:, None].expand(-1, 2)


def cdf(path: Transport, x: Tensor, t: Tensor) -> Tensor:
    """Distribution function of x_t at (B,) points."""
    weights, means, deviations = parts(path, t)
    return (weights * torch.special.ndtr((x[:, None] - means) / deviations)).sum(1)


def quantile(path: Transport, u: Tensor, t: Tensor) -> Tensor:
    """Its inverse, by bisection."""
    low, high = torch.full_like(u, -60.0), torch.full_like(u, 60.0)
    for _ in range(80):
        middle = 0.5 * (low + high)
        below = cdf(path, middle, t) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def flow(path: Transport, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The probability-flow map of (B,) points; s = 0 is the data itself."""
    u = cdf(path, x, t)
    to_data = quantile(preset("flow_matching").transport, u, torch.zeros_like(s))
    return torch.where(s == 0, to_data, quantile(path, u, s))


def posterior(path: Transport, x: Tensor, t: Tensor, nodes: int = 64) -> tuple[Tensor, Tensor]:
    """(values, weights), each (B, 2 nodes): the target F given x_t, by quantiles of x given x_t."""
    c = path.coefficients(t.double())
    weights, means, deviations = parts(path, t)
    log_share = weights.log() - 0.5 * ((x[:, None] - means) / deviations) ** 2 - deviations.log()
    share = log_share.softmax(1)
    gain = (c.alpha * DEVIATION**2)[:, None] / deviations**2
    centre = MIXTURE[1] + gain * (x[:, None] - means)
    spread = DEVIATION * c.sigma[:, None] / deviations
    u = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
    data = centre[:, :, None] + spread[:, :, None] * torch.special.ndtri(u)
    noise = (x[:, None, None] - c.alpha[:, None, None] * data) / c.sigma[:, None, None]
    target = c.alpha_pred[:, None, None] * data + c.sigma_pred[:, None, None] * noise
    return target.flatten(1), (share[:, :, None] / nodes).expand_as(target).flatten(1)


def mean_field(path: Transport, x: Tensor, t: Tensor) -> Tensor:
    """E[F | x_t] in closed form: conditional means of data and noise, by the parts' shares."""
    c = path.coefficients(t)
    weights, means, deviations = parts(path, t)
    share = (weights.log() - 0.5 * ((x[:, None] - means) / deviations) ** 2).softmax(1)
    gain = (c.alpha * DEVIATION**2)[:, None] / deviations**2
    data = (share * (MIXTURE[1] + gain * (x[:, None] - means))).sum(1)
    return c.alpha_pred * data + c.sigma_pred * (x - c.alpha * data) / c.sigma


def field(path: Transport, x: Tensor, t: Tensor, power: float, eps: float) -> tuple[Tensor, Tensor]:
    """The M-estimate at (x_t, t), where E[r (r^2 + eps)^-power] = 0, and whether it is the only.

    For power <= 1/2 there is one root; for more, which one is learned depends on the training.
    """
    grid = torch.linspace(-8.0, 8.0, 321, dtype=torch.float64)
    target, weights = posterior(path, x, t)

    def pull(f: Tensor) -> Tensor:
        """E[r (r^2 + eps)^-power] of predictions (B, K)."""
        r = target[:, None, :] - f[:, :, None]
        return (weights[:, None, :] * r * (r.square() + eps).pow(-power)).sum(2)

    sign = torch.cat([pull(part.expand(len(x), -1)) for part in grid.split(16)], 1) > 0
    falls = sign[:, :-1] & ~sign[:, 1:]
    low = grid[falls.double().argmax(1)]
    high = low + (grid[1] - grid[0])
    for _ in range(40):
        middle = 0.5 * (low + high)
        above = pull(middle[:, None])[:, 0] > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return low, falls.sum(1) == 1
