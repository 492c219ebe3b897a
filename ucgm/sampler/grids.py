"""Time grids, computed once on the host in float64.

    u_i = linspace(g0, 1 - g1, N),   u <- (1 - (1 - u^a)^b)^c,   t_i = 1 - u_i,   t_N = 0

``warp`` = (a, b, c) is the Kumaraswamy transform and ``gap`` = (g0, g1) trims the ends (UCGM-S,
arXiv 2505.07447, section 3.3).  With two steps, an end gap of 0.3 to 0.75 is the middle time.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """The times at which a sampler evaluates the network."""

    warp: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Kumaraswamy (a, b, c); (1, 1, 1) is uniform."""
    gap: tuple[float, float] = (0.001, 0.001)
    """distance of the first time from 1 and of the last from 0, before the warp."""

    def __post_init__(self) -> None:
        """Refuse grids that do not fall from noise to data."""
        if min(self.warp) <= 0:
            raise ValueError(f"grid.warp must be three positive numbers, got {self.warp}")
        if min(self.gap) < 0 or sum(self.gap) >= 1:
            raise ValueError(
                f"grid.gap must be two non-negative numbers below 1 in sum: {self.gap}"
            )

    def times(self, steps: int) -> torch.Tensor:
        """(steps + 1,) float64 falling times, the last one 0.

        With an end gap of 0 the last time would be 0 twice, so the grid is made with one more
        point, as published.
        """
        if steps < 1:
            raise ValueError(f"the number of steps must be at least 1, got {steps}")
        start, end = self.gap
        count = steps + 1 if end == 0 else steps
        u = torch.linspace(start, 1.0 - end, count, dtype=torch.float64)[:steps]
        a, b, c = self.warp
        u = (1.0 - (1.0 - u**a) ** b) ** c
        return torch.cat((1.0 - u, u.new_zeros(1)))
