"""A solver as data: the list of network evaluations and the update after each.

Both estimates x_hat and z_hat are linear in the state x and the prediction F, so every solver is
a list of evaluations i at (x_i, t_i), each followed by

    x_{i+1} = sum_j (a_j x_{i-j} + b_j F_{i-j}) + n eps

with scalars computed once, in float64, on the host.  A predictor and its corrector are two
entries: the corrector refers to the predictor's state and prediction as j = 0 and to where the
step began as j = 1.  NFE, guidance interval, churn and restart can be read from the list.  A
:class:`History` computes the sums, in the loop of a sampler or of a diffusers pipeline.

A step to time 0 arrives at the data, alpha = 1 and sigma = 0, also on a path (EDM) whose first
point is scaled and still carries a little noise.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from ucgm.runtime.randomness import RowRandom
from ucgm.runtime.values import Range, Share, check_values
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

    interval: tuple[Share, Share] = (0.1, 0.4)
    """times (low, high): at the grid time nearest to low the sample is renoised to high."""
    repeats: Annotated[int, Range(1, 1000)] = 1
    """how often."""
    steps: Annotated[int, Range(1, 1000)] = 2
    """steps of each repeat, uniform in time."""

    def __post_init__(self) -> None:
        """Refuse intervals that do not rise and counts below one."""
        check_values(self, "restart")
        if not 0.0 < self.interval[0] < self.interval[1]:
            raise ValueError(f"restart.interval must be rising times in (0, 1]: {self.interval}")


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


class History:
    """The updates of a plan on tensors: what one trajectory keeps between evaluations.

    An evaluation that later updates refer to is kept as the fewest tensors a x_i + b F_i that they
    are sums of, which is one for every method with a history of one estimate.  The update that
    needs a tensor last drops it, so memory does not grow with the steps.  A prediction may be kept
    as it is: a network must not write into what it has returned.
    """

    def __init__(self, plan: Sequence[Step]) -> None:
        self.plan = plan
        self.longest = max(len(step.weights) for step in plan)
        self.terms: dict[int, list[tuple[float, Tensor]]] = defaultdict(list)  # of later updates

    def advance(self, i: int, x: Tensor, prediction: Tensor, random: RowRandom | None) -> Tensor:
        """The state (B, ...) after evaluation ``i``, which saw ``x`` and gave ``prediction``
        (B, ...).

        A prediction in half precision is widened inside the sums.
        """
        step = self.plan[i]
        if prediction.dtype.itemsize > x.dtype.itemsize:
            prediction = prediction.to(x.dtype)
        out = combine(x, prediction, *step.weights[0])
        for weight, tensor in self.terms.pop(i, ()):
            out.add_(tensor, alpha=weight)
        if step.noise and random is not None:
            out.add_(random.normal(*x.shape[1:], dtype=x.dtype), alpha=step.noise)
        uses = self.uses(i)
        for base in spanning(list(uses.values())):
            whole = {(1.0, 0.0): x, (0.0, 1.0): prediction}.get(base)
            tensor = combine(x, prediction, *base) if whole is None else whole
            for later, (a, b) in uses.items():
                if weight := b if base[1] == 1.0 else a:
                    self.terms[later].append((weight, tensor))
        return out

    def uses(self, i: int) -> dict[int, Pair]:
        """Later evaluation -> the weights (a, b) of evaluation ``i`` in its update."""
        later = range(i + 1, min(i + self.longest, len(self.plan)))
        weights = {m: self.plan[m].weights for m in later if m - i < len(self.plan[m].weights)}
        return {m: w[m - i] for m, w in weights.items() if w[m - i] != (0.0, 0.0)}


def spanning(pairs: Sequence[Pair]) -> list[Pair]:
    """The fewest combinations of x and F that all ``pairs`` are multiples of, or sums."""
    if not pairs:
        return []
    a, b = max(pairs, key=lambda pair: abs(pair[0]) + abs(pair[1]))
    size = abs(a) + abs(b)
    for other in pairs:
        cross = a * other[1] - b * other[0]
        if abs(cross) > 1e-12 * size * (abs(other[0]) + abs(other[1])):
            return [(1.0, 0.0), (0.0, 1.0)]
    if abs(a) <= 1e-14 * abs(b):
        return [(0.0, 1.0)]
    return [(a / b, 1.0)] if abs(b) >= abs(a) else [(1.0, b / a)]


def combine(x: Tensor, prediction: Tensor, a: float, b: float) -> Tensor:
    """a x + b F, of any shape, in a new tensor, in one pass when a or b is 1."""
    if abs(a - 1.0) < 1e-13:
        return torch.add(x, prediction, alpha=b)
    if b == 1.0:
        return torch.add(prediction, x, alpha=a)
    return torch.mul(x, a).add_(prediction, alpha=b)
