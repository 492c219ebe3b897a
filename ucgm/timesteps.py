"""Floor 0: laws of training times.

A law on [0, 1] is its quantile function: t = Q(u) with u uniform.  That makes every law a pure
function of the row's random number, lets a test compare it with its closed form, and needs no
generator of its own.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ucgm.transport import Transport


@dataclass(frozen=True)
class TimeLaw:
    """Base of the laws of t: subclasses give :meth:`quantile`."""

    def quantile(self, u: Tensor, transport: Transport) -> Tensor:
        """Times in [0, 1] of the shape of ``u``, uniform numbers in (0, 1)."""
        raise NotImplementedError(f"{type(self).__name__} must define quantile(u, transport)")


@dataclass(frozen=True)
class Uniform(TimeLaw):
    """t ~ U(0, 1)."""

    def quantile(self, u: Tensor, transport: Transport) -> Tensor:
        """t = u."""
        return u


@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    """logit(t) ~ N(mean, std^2) (Stable Diffusion 3, arXiv 2403.03206, section 3.1)."""

    mean: float = 0.0
    """mean of logit(t); positive favours noise."""
    std: float = 1.0
    """standard deviation of logit(t)."""

    def quantile(self, u: Tensor, transport: Transport) -> Tensor:
        """t = sigmoid(mean + std Phi^-1(u))."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@lru_cache(maxsize=32)
def _beta_quantiles(a: float, b: float, nodes: int = 4096) -> Tensor:
    """Quantiles of Beta(a, b) at u = (1 - cos(pi k / nodes)) / 2, k = 0..nodes, in float64.

    The substitution t = sin^2(w) turns the density into sin^(2a-1) cos^(2b-1) dw, whose singular
    ends are mild, so a fine trapezoid is accurate for the a, b > 0.5 that are used.
    """
    half_pi = torch.pi / 2
    w = torch.linspace(0, half_pi, 64 * nodes + 1, dtype=torch.float64)
    middle = 0.5 * (w[1:] + w[:-1])
    density = middle.sin() ** (2 * a - 1) * middle.cos() ** (2 * b - 1)
    cdf = torch.cat((torch.zeros(1, dtype=torch.float64), density.cumsum(0)))
    cdf /= cdf[-1].clone()
    u = 0.5 * (1 - torch.cos(torch.linspace(0, torch.pi, nodes + 1, dtype=torch.float64)))
    right = torch.searchsorted(cdf, u).clamp(1, len(cdf) - 1)
    share = (u - cdf[right - 1]) / (cdf[right] - cdf[right - 1])
    return torch.sin(w[right - 1] + share * (w[right] - w[right - 1])) ** 2


@dataclass(frozen=True)
class Beta(TimeLaw):
    """t ~ clip(scale * Beta(a, b), 0, 1) (UCGM, arXiv 2505.07447, "time_dist_ctrl")."""

    a: float = 1.0
    """first shape parameter; below b favours data."""
    b: float = 1.0
    """second shape parameter."""
    scale: float = 1.0
    """factor on the Beta variable before clipping."""

    def __post_init__(self) -> None:
        """Refuse shapes without a density."""
        if min(self.a, self.b, self.scale) <= 0:
            raise ValueError(f"Beta needs a, b and scale above 0, got {self}")

    def quantile(self, u: Tensor, transport: Transport) -> Tensor:
        """Closed form where a or b is 1, otherwise a table of 4,097 quantiles, linear between."""
        if self.b == 1.0:
            t = u ** (1.0 / self.a)
        elif self.a == 1.0:
            t = 1.0 - (1.0 - u) ** (1.0 / self.b)
        else:
            table = _beta_quantiles(self.a, self.b).to(u)
            place = torch.acos((1 - 2 * u).clamp(-1, 1)) / torch.pi * (len(table) - 1)
            left = place.floor().clamp(0, len(table) - 2).long()
            t = torch.lerp(table[left], table[left + 1], place - left)
        return (self.scale * t).clamp(0.0, 1.0)
