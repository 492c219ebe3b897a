"""A solver as data: the list of network evaluations and the update after each.

Both estimates x_hat and z_hat are linear in the state x and the prediction F, so every solver is
a list of evaluations i at (x_i, t_i), each followed by

    x_{i+1} = sum_j (a_j x_{i-j} + b_j F_{i-j}) + n eps

with scalars computed once, in float64, on the host.  A predictor and its corrector are two
entries: the corrector refers to the predictor's state and prediction as j = 0 and to where the
step began as j = 1.  NFE, guidance interval, churn and restart can be read from the list.

A step to time 0 arrives at the data, alpha = 1 and sigma = 0, also on a path (EDM) whose first
point is scaled and still carries a little noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from ucgm.transport import Transport

Pair = tuple[float, float]
NoiseRule = Literal["share", "ddim", "auto"]

SMALL = 1e-8  # below it a signal coefficient counts as none: Trig has 6e-17 at t = 1


class Step(NamedTuple):
    """One network evaluation at time ``t`` and the update to time ``s``.

    weights: (a_j, b_j) on state and prediction of this evaluation, the one before, ...;
    noise: coefficient n of fresh noise; second: the second time given to a two-time network.
    """

    t: float
    s: float
    weights: tuple[Pair, ...]
    noise: float = 0.0
    second: float | None = None


class Knot(NamedTuple):
    """The coefficients of a transport at one time, and their slopes, as Python floats."""

    t: float
    alpha: float
    sigma: float
    alpha_pred: float
    sigma_pred: float
    alpha_rate: float
    sigma_rate: float

    def estimate(self, on_x_hat: float, on_z_hat: float) -> Pair:
        """(a, b) with a x + b F = on_x_hat x_hat + on_z_hat z_hat."""
        d = self.sigma * self.alpha_pred - self.alpha * self.sigma_pred
        a = (on_z_hat * self.alpha_pred - on_x_hat * self.sigma_pred) / d
        b = (on_x_hat * self.sigma - on_z_hat * self.alpha) / d
        return a, b

    @property
    def ratio(self) -> float:
        """u = sigma / alpha; infinite without signal."""
        return self.sigma / self.alpha if self.alpha > SMALL else math.inf


@dataclass(frozen=True)
class Restart:
    """Go over an interval of times again: renoise to its upper end and solve (arXiv 2306.14878)."""

    interval: tuple[float, float] = (0.1, 0.4)
    """times (low, high): at the grid time nearest to low the sample is renoised to high."""
    repeats: int = 1
    """how often."""
    steps: int = 2
    """steps of each repeat, uniform in time."""

    def __post_init__(self) -> None:
        """Refuse intervals that do not rise and counts below one."""
        object.__setattr__(self, "interval", tuple(self.interval))
        low, high = self.interval
        if not 0.0 < low < high <= 1.0:
            raise ValueError(f"restart.interval must be rising times in (0, 1]: {self.interval}")
        if self.repeats < 1 or self.steps < 1:
            raise ValueError("restart.repeats and restart.steps must be at least 1")


def knots(transport: Transport, times: Sequence[float]) -> list[Knot]:
    """The knots at ``times``."""
    t = torch.tensor(list(times), dtype=torch.float64, device="cpu")
    columns = (t, *transport.coefficients(t), *transport.derivatives(t))
    return [Knot(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def arrival(knot: Knot) -> Pair:
    """(alpha, sigma) of a destination: the data themselves at time 0."""
    return (1.0, 0.0) if knot.t == 0 else (knot.alpha, knot.sigma)


def combined(*terms: tuple[float, Pair]) -> Pair:
    """sum_k w_k (a_k, b_k)."""
    return sum(w * p[0] for w, p in terms), sum(w * p[1] for w, p in terms)


def fresh_shares(path: Sequence[Knot], rule: NoiseRule, amount: float) -> list[float]:
    """Share r in [0, 1] of the noise's variance that is fresh, for each step of ``path``.

    share   r = amount                                      0 ODE, 1 consistency sampling
    ddim    r = amount^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)
            DDIM with eta = amount (arXiv 2010.02502, equation 16); 1 is DDPM
    auto    r = amount min(1, 2 sigma_t (t - s) / sigma_s^2)
            the variance that the reverse SDE with g^2 = 2 sigma_t adds over the step
    """
    shares = []
    for at, to in zip(path, path[1:], strict=False):
        alpha, sigma = arrival(to)
        if sigma == 0:
            shares.append(0.0)
        elif rule == "share":
            shares.append(amount)
        elif rule == "ddim":
            shares.append(amount**2 * (1.0 - (at.alpha * sigma / (alpha * at.sigma)) ** 2))
        else:
            shares.append(amount * min(1.0, 2.0 * at.sigma * (at.t - to.t) / sigma**2))
    return shares


def renoised(step: Step, at: Knot, to: Knot, scale: float = 1.0) -> Step:
    """``step``, which ends at ``at``, followed by forward diffusion to the noisier ``to``.

    x_to = (alpha_to / alpha_at) x + sqrt(sigma_to^2 - (alpha_to sigma_at / alpha_at)^2) eps; only
    this noise is multiplied by ``scale``.
    """
    ratio = to.alpha / at.alpha
    fresh = math.sqrt(max(0.0, to.sigma**2 - (ratio * at.sigma) ** 2)) * scale
    weights = tuple((ratio * a, ratio * b) for a, b in step.weights)
    return step._replace(s=to.t, weights=weights, noise=math.hypot(ratio * step.noise, fresh))


def restart_segments(times: Sequence[float], restart: Restart) -> list[list[float]]:
    """Falling stretches of time: to the low end, the repeats, and on to the data.

    Raises:
        ValueError: when no time of the grid lies below the interval's upper end.
    """
    low, high = restart.interval
    inner = range(1, len(times) - 1)
    j = min(inner, key=lambda i: abs(times[i] - low), default=0)
    if not inner or times[j] >= high or high > times[0]:
        raise ValueError(
            f"restart.interval {restart.interval} does not lie within the times of the grid, "
            f"{times[0]:.4g} to {times[-2]:.4g}: take more steps or another interval"
        )
    n = restart.steps
    again = [high + (times[j] - high) * k / n for k in range(n)] + [times[j]]
    return [list(times[: j + 1]), *[again] * restart.repeats, list(times[j:])]
