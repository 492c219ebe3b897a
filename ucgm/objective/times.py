"""Laws of training times t.

A law on [0, 1] is its quantile function: t = Q(u) with u uniform.  That makes every law a pure
function of the row's random number, lets a test compare it with its closed form, and needs no
generator of its own.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from torch import Tensor

from ucgm.runtime.values import Number, Positive, Range, check_values
from ucgm.transport import Linear, Transport, Trig

_LINEAR, _TRIG = Linear(), Trig()


@dataclass(frozen=True)
class TimeDistribution:
    """Base of the laws of t: subclasses give :meth:`quantile`."""

    def __post_init__(self) -> None:
        check_values(self)

    def quantile(self, u: Tensor, transport: Transport) -> Tensor:
        """Times in [0, 1] of the shape of ``u``, uniform numbers in (0, 1)."""
        raise NotImplementedError(f"{type(self).__name__} must define quantile(u, transport)")


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """t ~ U(0, 1)."""

    def quantile(self, u: Tensor, transport: Transport) -> Tensor:
        """t = u."""
        return u


@dataclass(frozen=True)
class LogNormal(TimeDistribution):
    """log(sigma / alpha) ~ N(mean, std^2), the noise level of EDM (arXiv 2206.00364, table 1)."""

    mean: Number = -1.2
    """mean of the logarithm; positive favours noise."""
    std: Positive = 1.2
    """its standard deviation."""

    def quantile(self, u: Tensor, transport: Transport) -> Tensor:
        """The time at which the path has the noise level exp(mean + std Phi^-1(u))."""
        return transport.time_at_log_snr(-2.0 * (self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class LogitNormal(LogNormal):
    """logit(t) ~ N(mean, std^2) (Stable Diffusion 3, arXiv 2403.03206, section 3.1)."""

    mean: Number = 0.0
    std: Positive = 1.0

    def quantile(self, u: Tensor, transport: Transport) -> Tensor:
        """The time of the linear path, where sigma / alpha = t / (1 - t), on any path."""
        return super().quantile(u, _LINEAR)


@dataclass(frozen=True)
class ArcTan(LogNormal):
    """log(tan(pi t / 2)) ~ N(mean, std^2) (FACM, arXiv 2507.03738, published code)."""

    mean: Number = -0.8
    std: Positive = 1.6

    def quantile(self, u: Tensor, transport: Transport) -> Tensor:
        """The time of the trigonometric path, where sigma / alpha is that tangent, on any path."""
        return super().quantile(u, _TRIG)


@lru_cache(maxsize=32)
def _beta_quantiles(a: float, b: float, nodes: int = 4096) -> Tensor:
    """Quantiles of Beta(a, b) at u = (1 - cos(pi k / nodes)) / 2, k = 0..nodes, in float64.

    The substitution t = sin^2(w) turns the density into sin^(2a-1) cos^(2b-1) dw, whose singular
    ends are mild, so a fine midpoint rule is accurate: to 1e-7 from 0.6 on, to 1e-4 at 0.3.
    """
    half_pi = torch.pi / 2
    w = torch.linspace(0, half_pi, 64 * nodes + 1, dtype=torch.float64)
    middle = 0.5 * (w[1:] + w[:-1])
    density = middle.sin() ** (2 * a - 1) * middle.cos() ** (2 * b - 1)
    cdf = torch.cat((torch.zeros(1, dtype=torch.float64), density.cumsum(0)))
    cdf /= cdf[-1].clone()
    u = 0.5 * (1 - torch.cos(torch.linspace(0, torch.pi, nodes + 1, dtype=torch.float64)))
    right = torch.searchsorted(cdf, u).clamp(1, len(cdf) - 1)
    share = (u - cdf[right - 1]) / (cdf[right] - cdf[right - 1]).clamp(min=1e-300)
    return torch.sin(w[right - 1] + share * (w[right] - w[right - 1])) ** 2


Shape = Annotated[float, Range(0.0, 100.0, above=True)]


@dataclass(frozen=True)
class Beta(TimeDistribution):
    """t ~ clip(scale * Beta(a, b), 0, 1) (UCGM, arXiv 2505.07447, "time_dist_ctrl")."""

    a: Shape = 1.0
    """first shape parameter; below b favours data."""
    b: Shape = 1.0
    """second shape parameter."""
    scale: Positive = 1.0
    """factor on the Beta variable before clipping."""

    def __post_init__(self) -> None:
        """Refuse shapes without a density."""
        super().__post_init__()
        if 1.0 not in (self.a, self.b) and min(self.a, self.b) < 0.3:  # off by 2e-3 at 0.2
            raise ValueError(f"Beta needs a and b of 0.3 or more where neither is 1, got {self}")

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
