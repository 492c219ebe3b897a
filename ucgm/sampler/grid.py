"""Time grids, computed once on the host in float64.

    u_i = linspace(g0, 1 - g1, N),   u <- (1 - (1 - u^a)^b)^c,   t_i = 1 - u_i,   t_N = 0

``warp`` = (a, b, c) is the Kumaraswamy transform and ``gap`` = (g0, g1) trims the ends (UCGM-S,
arXiv 2505.07447, section 3.3).  With two steps, an end gap of 0.3 to 0.75 is the middle time.
Other spacings are uniform in another coordinate between the same ends, 1 - g0 and g1:

    log_snr   lambda = log(alpha / sigma)                         (arXiv 2206.00927)
    karras    (sigma / alpha)^(1 / rho)                           (arXiv 2206.00364, equation 5)

with the warp applied to the position in [0, 1].  ``shift`` = k moves all times towards noise,
t <- k t / (1 + (k - 1) t), which is dividing the signal-to-noise ratio of the linear path by k^2
(arXiv 2403.03206, equation 23).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ucgm.runtime.values import Positive, Range, Share, check_values
from ucgm.transport import Linear, Transport


def _host(numbers: list[float]) -> Tensor:
    """float64 on the CPU, whatever the default device is."""
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Grid:
    """The times at which a sampler evaluates the network."""

    warp: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    """Kumaraswamy (a, b, c); (1, 1, 1) is uniform."""
    gap: tuple[Share, Share] = (0.001, 0.001)
    """distance of the first time from 1 and of the last from 0, before the warp."""
    spacing: Literal["uniform", "log_snr", "karras"] = "uniform"
    """coordinate in which the times are uniform: t, log-SNR, or Karras' power of sigma/alpha."""
    rho: Annotated[float, Range(0.1, 100.0)] = 7.0
    """power of the karras spacing."""
    shift: Positive = 1.0
    """timestep shift k of the finished grid; 1 is none, more puts more steps at high noise."""
    explicit: tuple[Share, ...] | None = None
    """the times themselves, falling, without the final 0; replaces all of the above."""

    def __post_init__(self) -> None:
        """Refuse grids that do not fall from noise to data."""
        check_values(self, "grid")
        if sum(self.gap) >= 1:
            raise ValueError(f"grid.gap must be two numbers below 1 in sum: {self.gap}")
        if self.explicit is not None:
            t = [*self.explicit, 0.0]
            if len(t) < 2 or t[0] > 1 or any(b >= a for a, b in zip(t, t[1:], strict=False)):
                raise ValueError(
                    f"grid.explicit must be falling times in (0, 1], got {self.explicit}"
                )

    def times(self, steps: int, transport: Transport | None = None) -> Tensor:
        """(steps + 1,) float64 falling times, the last one 0.

        With an end gap of 0 the last time would be 0 twice, so the grid is made with one more
        point, as published.

        Args:
            steps: number of evaluations times.
            transport: whose log-SNR the spacings mean; linear when None.

        Raises:
            ValueError: more steps than the grid has times for, or ends at which a spacing has no
                coordinate.
        """
        if steps < 1:
            raise ValueError(f"the number of steps must be at least 1, got {steps}")
        if self.explicit is not None:
            if steps != len(self.explicit):
                raise ValueError(
                    f"grid.explicit has {len(self.explicit)} times and the sampler {steps} steps: "
                    f"set steps to {len(self.explicit)}, or leave grid.explicit out"
                )
            return _host([*self.explicit, 0.0])
        start, end = self.gap
        ends = (start, 1.0 - end) if self.spacing == "uniform" else (0.0, 1.0)
        count = steps + 1 if end == 0 else steps
        u = torch.linspace(*ends, count, dtype=torch.float64, device="cpu")[:steps]
        a, b, c = self.warp
        u = (1.0 - (1.0 - u**a) ** b) ** c
        t = 1.0 - u if self.spacing == "uniform" else self._spaced(u, transport or Linear())
        t = self.shift * t / (1.0 + (self.shift - 1.0) * t)
        # The network sees float32 times: neighbours must differ there.
        if not bool((torch.cat((t, t.new_zeros(1))).float().diff() < 0).all()):
            raise ValueError(
                f"{steps} steps are more than this grid allows: times coincide (gap {self.gap}, "
                f"warp {self.warp}); take fewer steps or a weaker warp"
            )
        return torch.cat((t, t.new_zeros(1)))

    def _spaced(self, u: Tensor, transport: Transport) -> Tensor:
        """Times at positions ``u`` in [0, 1] between the ends, in the coordinate of the spacing."""
        ends = _host([1.0 - self.gap[0], self.gap[1]])
        log_ratio = -0.5 * transport.log_snr(ends)  # log(sigma / alpha)
        if self.spacing == "log_snr":
            coordinate = log_ratio
        else:
            coordinate = (log_ratio / self.rho).exp()
        if not bool(torch.isfinite(coordinate).all()):
            place = "start" if not bool(torch.isfinite(coordinate[0])) else "end"
            raise ValueError(
                f"grid.spacing {self.spacing} needs a {place} gap above 0: the log-SNR of this "
                f"path is infinite there"
            )
        points = coordinate[0] + u * (coordinate[1] - coordinate[0])
        log_ratio = points if self.spacing == "log_snr" else self.rho * points.log()
        return transport.time_at_log_snr(-2.0 * log_ratio)
