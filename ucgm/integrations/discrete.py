"""The path of a model that was trained on N discrete noise levels (DDPM, arXiv 2006.11239).

    abar_k = prod_{i <= k} (1 - beta_i),  k = 0..N-1;    t = (k + 1) / N
    alpha(t)^2 = abar_{N t - 1},  alpha(0) = 1,  log alpha linear in between

so that the training levels are met exactly, time 0 is the data, and a step size is free.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import torch
from torch import Tensor

from ucgm.runtime.values import Range
from ucgm.transport import Coefficients, Transport

Schedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Beta = Annotated[float, Range(0.0, 0.9999, above=True)]


@dataclass(frozen=True)
class DiscreteVP(Transport):
    """A variance-preserving path through given noise levels."""

    prediction: Literal["eps", "v", "x"] = "eps"
    """what the network predicts."""
    num_levels: Annotated[int, Range(1, 100_000)] = 1000
    """N."""
    schedule: Schedule = "linear"
    """beta linear in k, its square root linear, or from a cosine abar (arXiv 2102.09672)."""
    beta: tuple[Beta, Beta] = (0.0001, 0.02)
    """first and last beta of the linear schedules."""
    betas: tuple[Beta, ...] | None = None
    """all betas; replaces the schedule."""
    zero_terminal: bool = False
    """rescale to (nearly) no signal at the last level (arXiv 2305.08891, algorithm 1)."""
    terminal: Annotated[float, Range(1e-9, 1.0)] = 2.0**-12
    """alpha of that level; solvers in sigma / alpha take the default."""

    def __post_init__(self) -> None:
        """Refuse betas that do not fit."""
        super().__post_init__()
        if self.betas is not None and len(self.betas) != self.num_levels:
            raise ValueError(f"{len(self.betas)} betas are none of {self.num_levels} levels")
        if self.zero_terminal and self.num_levels == 1:
            raise ValueError("a path of one level cannot be rescaled to no signal at the last")

    def coefficients(self, t: Tensor) -> Coefficients:
        """The path, and the prediction in terms of data and noise."""
        table = _log_alpha(self).to(t.device)
        place = t.to(table.dtype) * self.num_levels
        low = place.detach().floor().clamp(0, self.num_levels - 1)
        below, above = table[low.long()], table[low.long() + 1]
        log_alpha = (below + (place - low) * (above - below)).to(t.dtype)
        alpha, sigma = log_alpha.exp(), torch.sqrt(-torch.expm1(2.0 * log_alpha))
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        predictions = {"eps": (zero, one), "v": (-sigma, alpha), "x": (one, zero)}
        return Coefficients(alpha, sigma, *predictions[self.prediction])

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """Piecewise linear inverse: log alpha = -softplus(-log_snr) / 2; ends are clipped."""
        table = _log_alpha(self).to(log_snr.device)
        wanted = -0.5 * torch.nn.functional.softplus(-log_snr.to(table.dtype))
        above = torch.searchsorted(-table, -wanted).clamp(1, self.num_levels)
        low, high = table[above - 1], table[above]
        place = above - 1 + ((wanted - low) / (high - low)).clamp(0.0, 1.0)
        return (place / self.num_levels).to(log_snr.dtype)


@lru_cache(maxsize=8)
def _log_alpha(path: DiscreteVP) -> Tensor:
    """log alpha at t = 0, 1/N, ..., 1 as (N + 1,) float64."""
    n = path.num_levels
    if path.betas is not None:
        beta = torch.tensor(path.betas, dtype=torch.float64, device="cpu")
    elif path.schedule == "squaredcos_cap_v2":
        t = torch.arange(n + 1, dtype=torch.float64, device="cpu") / n
        bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = (1.0 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        power = 2 if path.schedule == "scaled_linear" else 1
        low, high = (b ** (1 / power) for b in path.beta)
        beta = torch.linspace(low, high, n, dtype=torch.float64, device="cpu") ** power
    log_alpha = 0.5 * torch.log1p(-beta).cumsum(0)
    if path.zero_terminal:
        root = log_alpha.exp()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        log_alpha = root.clamp(min=path.terminal).log()
    return torch.cat((log_alpha.new_zeros(1), log_alpha))
