"""Adams methods: what iPNDM, DEIS, DPM-Solver++ and UniPC have in common.

The probability-flow ODE is linear but for one estimate q of the network.  For each choice of q it
is solved exactly between the nodes,

    q         x_s =                                          with the measure
    velocity  x_t + int q dt                                 dt
    noise     (alpha_s / alpha_t) x_t + alpha_s int z_hat du      u = sigma / alpha
    data      (sigma_s / sigma_t) x_t + sigma_s int x_hat d(1/u)

and q is replaced by the Lagrange polynomial through its last values in a time variable c: time, u
(called sigma) or lambda = log(alpha / sigma) (called log_snr).  So w_j = int L_j(c) d(measure), by
Gauss-Legendre quadrature in a variable in which the measure is smooth.

    velocity in time      Adams-Bashforth; with `extrapolation` UCGM-S in state-preserving form
    noise in sigma, time  iPNDM, DEIS (arXiv 2202.09778, 2204.13902)
    data in log_snr       DPM-Solver++ 2M, 3M (arXiv 2211.01095); its published second-order form
                          takes the polynomial at the middle of the step (`integration: midpoint`)

The first step has one value and is of order 1, the second of order 2, and so on; so is a step from
or to a point where the time variable is infinite.  The corrector (UniPC, arXiv 2302.04867) repeats
the last step with the new value among its nodes; it costs no evaluation and raises the order by 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import numpy as np
import torch

from ucgm.sampler.plan import SMALL, Knot, Pair, Step, arrival, combined
from ucgm.transport import Transport

Variable = Literal["velocity", "noise", "data"]
TimeVariable = Literal["time", "sigma", "log_snr"]
Integration = Literal["exact", "midpoint"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


@dataclass(frozen=True)
class Rule:
    """Which estimate is extrapolated, in which time variable, on which transport."""

    transport: Transport
    variable: Variable
    time_variable: TimeVariable
    integration: Integration = "exact"

    def value(self, knot: Knot) -> Pair:
        """(a, b) of the estimate q at a knot."""
        if self.variable == "velocity":
            return knot.estimate(knot.alpha_rate, knot.sigma_rate)
        return knot.estimate(*((0.0, 1.0) if self.variable == "noise" else (1.0, 0.0)))

    def carry(self, at: Knot, to: Knot) -> tuple[float, float]:
        """(factor on the state, total of the measure) between two knots."""
        if self.variable == "velocity":
            return 1.0, to.t - at.t
        alpha, sigma = arrival(to)
        if self.variable == "noise":
            return alpha / at.alpha, sigma - alpha * at.sigma / at.alpha
        return sigma / at.sigma, alpha - sigma * at.alpha / at.sigma

    def single(self, at: Knot, to: Knot) -> Pair:
        """(a, b) of the step of order one; for noise and data that is DDIM."""
        if self.variable == "velocity" and to.t > 0:
            return combined((1.0, (1.0, 0.0)), (to.t - at.t, self.value(at)))
        return at.estimate(*arrival(to))

    def abscissa(self, knot: Knot) -> float:
        """The time variable at a knot; infinite where a polynomial in it has no meaning."""
        if self.variable == "noise" and knot.alpha <= SMALL:
            return math.inf
        if self.time_variable == "time":
            return knot.t
        alpha, sigma = arrival(knot)
        if self.time_variable == "sigma":
            return sigma / alpha if alpha > SMALL else math.inf
        return math.log(alpha / sigma) if min(alpha, sigma) > SMALL else math.inf

    def reaches(self, to: Knot) -> bool:
        """Whether a step to ``to`` can be of higher order than one."""
        if to.t == 0 and self.variable == "velocity":
            clean = abs(to.alpha - 1.0) < SMALL and to.sigma < SMALL
            return clean and math.isfinite(self.abscissa(to))
        return math.isfinite(self.abscissa(to))

    def _at_log_ratio(self, lam: np.ndarray) -> np.ndarray:
        """Time variable at points with lambda = log(alpha / sigma)."""
        if self.time_variable == "sigma":
            return np.exp(-lam)
        if self.time_variable == "log_snr":
            return lam
        return self.transport.time_at_log_snr(torch.from_numpy(2.0 * lam)).numpy()

    def _at_time(self, t: np.ndarray) -> np.ndarray:
        """Time variable at times."""
        if self.time_variable == "time":
            return t
        return self._at_log_ratio(0.5 * self.transport.log_snr(torch.from_numpy(t)).numpy())

    def points(self, at: Knot, to: Knot) -> tuple[np.ndarray, np.ndarray]:
        """(time variable, mass) of the quadrature between two knots; total mass: the measure."""
        total = self.carry(at, to)[1]
        if self.integration == "midpoint":
            return np.array([0.5 * (self.abscissa(at) + self.abscissa(to))]), np.array([total])
        if self.variable == "velocity":
            t = 0.5 * (at.t + to.t) + 0.5 * (to.t - at.t) * _NODES
            return self._at_time(t), 0.5 * total * _WEIGHTS
        if to.t > 0:
            low, high = math.log(at.alpha / at.sigma), math.log(to.alpha / to.sigma)
            lam = 0.5 * (low + high) + 0.5 * (high - low) * _NODES
            mass = _WEIGHTS * np.exp((lam - low) if self.variable == "data" else (low - lam))
            return self._at_log_ratio(lam), total * mass / mass.sum()
        if self.variable == "noise":
            u = at.ratio * (0.5 - 0.5 * _NODES)
            return self._at_log_ratio(-np.log(u)), 0.5 * total * _WEIGHTS
        return np.array([self.abscissa(to)]), np.array([total])  # all of the measure is at the data

    def weights(self, nodes: Sequence[Knot], at: Knot, to: Knot) -> list[float]:
        """Weights on q at ``nodes`` for the step between two knots."""
        if len(nodes) == 1:
            return [self.carry(at, to)[1]]
        points, mass = self.points(at, to)
        c = [self.abscissa(knot) for knot in nodes]
        result = []
        for j in range(len(c)):
            basis = np.ones_like(points)
            for i in range(len(c)):
                if i != j:
                    basis = basis * (points - c[i]) / (c[j] - c[i])
            result.append(float((mass * basis).sum()))
        return result


def adams_plan(
    rule: Rule, path: Sequence[Knot], order: int, extrapolation: float = 0.0, correct: bool = False
) -> list[Step]:
    """The plan over the knots of ``path``; NFE is the number of steps.

    Args:
        rule: estimate and time variable.
        path: N + 1 knots at falling times.
        order: number of values of the predictor, 1 to 4.
        extrapolation: k: the weights w_1 + 2 k (w_2 - w_1) between those of order 1 (k = 0) and
            2 (k = 1/2), that is q + k (h_i / h_{i-1}) (q - q_prev); needs order 1.
        correct: apply the corrector.
    """
    usable = [math.isfinite(rule.abscissa(knot)) for knot in path]
    values = [rule.value(knot) for knot in path[:-1]]
    steps: list[Step] = []
    before: list[float] = []  # weights of the step before, where they can be corrected
    for i, (here, there) in enumerate(zip(path, path[1:], strict=False)):
        count = (max(order, 2 if extrapolation else 1)) if rule.reaches(there) else 1
        nodes = _nodes(path, usable, i, count) or [here]
        if len(nodes) == 1 and not (usable[i] and (there.t > 0 or rule.variable != "velocity")):
            steps.append(Step(here.t, there.t, (rule.single(here, there),)))
            before = []
            continue
        factor, total = rule.carry(here, there)
        own = rule.weights(nodes, here, there)
        if extrapolation and len(own) == 2:
            own = [total + 2 * extrapolation * (own[0] - total), 2 * extrapolation * own[1]]
        weights = list(own)
        if correct and before:
            again = rule.weights(_nodes(path, usable, i, order + 1), path[i - 1], here)
            again = _add(again, [0.0, *(-w for w in before)])
            weights = _add(weights, [factor * w for w in again])
        pairs = [combined((w, values[i - j])) for j, w in enumerate(weights)]
        pairs[0] = (pairs[0][0] + factor, pairs[0][1])
        steps.append(Step(here.t, there.t, tuple(pairs)))
        before = own
    return steps


def _nodes(path: Sequence[Knot], usable: Sequence[bool], i: int, count: int) -> list[Knot]:
    """The knots i, i - 1, ... that a polynomial of ``count`` nodes goes through."""
    nodes = []
    for j in range(i, max(-1, i - count), -1):
        if not usable[j]:
            break
        nodes.append(path[j])
    return nodes


def _add(one: Sequence[float], two: Sequence[float]) -> list[float]:
    """The sum of two lists; the shorter one ends in zeros."""
    return [a + b for a, b in zip_longest(one, two, fillvalue=0.0)]
