"""Solvers without a history: Heun with churn, Euler-Maruyama, and jumps of a two-time network.

Heun (arXiv 2206.00364, algorithm 2, in any of the variables of :mod:`ucgm.sampler.multistep`):

    x_t' = x_t renoised to u' = (1 + g) u,  g = min(churn / N, sqrt(2) - 1)     within an interval
    x_s  = A x_t' + W q(x_t')                    predictor
    x_s <- A x_t' + W (q(x_t') + q(x_s)) / 2     corrector, not in the step to the data

Euler-Maruyama (SiT and REPA, arXiv 2401.08740, g^2 = 2 r sigma_t), h = t - s:

    x_s = x_t - h (v + r z_hat) + sqrt(2 r sigma_t h) eps,    because the score is -z_hat / sigma_t

and the last step has no noise; a last time of 0.04 (end gap) is usual.  r = 0 is Euler.

Jumps (consistency trajectory models, arXiv 2310.02279; MeanFlow, Shortcut): with F(x_t, t, m),

    x_m = A(t, m) x_t + B(t, m) F,    x_s = x_m renoised to s,    u_m = sqrt(1 - r) u_s

so r = 0 jumps straight to s, and r = 1 to the data and back, which is consistency sampling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ucgm.runtime.values import Interval, NotNegative, check_values
from ucgm.sampler.multistep import Rule
from ucgm.sampler.plan import SMALL, Knot, Step, arrival, combined, knots, renoised
from ucgm.transport import Transport


@dataclass(frozen=True)
class Churn:
    """Extra noise of the Heun solver (arXiv 2206.00364, algorithm 2)."""

    amount: NotNegative = 0.0
    """S_churn; the noise level rises by the factor min(S_churn / steps, sqrt(2) - 1)."""
    interval: Interval = (0.0, 1.0)
    """closed interval of t in which noise is added: S_min and S_max as times."""
    scale: NotNegative = 1.0
    """S_noise, the standard deviation of the added noise."""

    def __post_init__(self) -> None:
        check_values(self, "churn")


def time_at_ratio(transport: Transport, ratio: float) -> float:
    """The time with sigma / alpha = ratio."""
    log_snr = torch.tensor(-2.0 * math.log(ratio), dtype=torch.float64, device="cpu")
    return float(transport.time_at_log_snr(log_snr))


def heun_plan(rule: Rule, path: Sequence[Knot], churn: Churn) -> list[Step]:
    """The plan over the knots of ``path``: two evaluations a step, one in the step to the data."""
    gain = min(churn.amount / (len(path) - 1), math.sqrt(2.0) - 1.0)
    low, high = churn.interval
    steps: list[Step] = []
    start = path[0]  # the first point is not churned: there is no noisier one
    for i, there in enumerate(path[1:], start=1):
        if there.t == 0:
            steps.append(Step(start.t, 0.0, (start.estimate(1.0, 0.0),)))
            break
        # Without signal sigma / alpha is infinite: there the trapezoid is taken of x_hat.
        no_signal = rule.variable == "noise" and start.alpha <= SMALL
        using = Rule(rule.transport, "data", rule.time_variable) if no_signal else rule
        factor, total = using.carry(start, there)
        begin, end = using.value(start), using.value(there)
        steps.append(Step(start.t, there.t, (using.single(start, there),)))
        pair = combined((factor, (1.0, 0.0)), (0.5 * total, begin))
        corrector = Step(there.t, there.t, (combined((0.5 * total, end)), pair))
        start = there
        if gain > 0 and i < len(path) - 1 and low <= there.t <= high:
            t = time_at_ratio(rule.transport, (1.0 + gain) * there.ratio)
            start = knots(rule.transport, [t])[0]
            corrector = renoised(corrector, there, start, churn.scale)
        steps.append(corrector)
    return steps


def euler_maruyama_plan(path: Sequence[Knot], stochasticity: float) -> list[Step]:
    """The plan over the knots of ``path`` with g^2 = 2 stochasticity sigma_t."""
    steps: list[Step] = []
    for at, to in zip(path, path[1:], strict=False):
        h = at.t - to.t
        drift = at.estimate(h * at.alpha_rate, h * (at.sigma_rate + stochasticity))
        noise = math.sqrt(2.0 * stochasticity * at.sigma * h) if to.t > 0 else 0.0
        steps.append(Step(at.t, to.t, (combined((1.0, (1.0, 0.0)), (-1.0, drift)),), noise))
    return steps


def jump_plan(transport: Transport, path: Sequence[Knot], shares: Sequence[float]) -> list[Step]:
    """The plan of a two-time network over the knots of ``path``; ``shares`` are r of each step."""
    steps: list[Step] = []
    for at, to, r in zip(path, path[1:], shares, strict=False):
        if to.t == 0 or r == 1:
            middle = 0.0
        elif r == 0:
            middle = to.t
        else:
            middle = time_at_ratio(transport, math.sqrt(1.0 - r) * to.ratio)
        via = knots(transport, [middle])[0]
        alpha, sigma = arrival(via)
        step = Step(at.t, middle, (at.estimate(alpha, sigma),), second=middle)
        if to.t != middle:
            step = renoised(step, via._replace(alpha=alpha, sigma=sigma), to)
        steps.append(step)
    return steps
