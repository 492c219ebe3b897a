"""Search for the sampler of a model at a given cost: a space of settings, and successive halving.

A point of the unit cube is a solver, its amount of extrapolation or of fresh noise, the warp and
the gaps of the grid, and guidance with its interval.  The cost of a sampler is its network passes
per image, two where guidance is on; a point stands for as many steps as the budget allows.

    round 1   n points of a Sobol sequence, and what the model has now
    rung k    all that are left are measured on the first m_k samples, a third of them goes on
    round 2   n / 2 points around the best ones, and those; the same rungs

Candidates of a rung are measured on the same samples (common random numbers), so that their order
is decided by the settings; scores of different rungs are not comparable (arXiv 1502.07943 for the
halving).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import torch

from ucgm.runtime.values import Count, Range, check_values
from ucgm.sampler.grid import Grid
from ucgm.sampler.guidance import Guidance
from ucgm.sampler.named import NAMED
from ucgm.sampler.sampler import Sampler

# Solver -> (settings, what `amount` is and its largest value).
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, float] | None]] = {
    "ucgm": ({}, ("extrapolation", 0.7)),
    "ucgm_state": ({"solver": "adams"}, ("extrapolation", 0.7)),
    "ab3": (NAMED["ab3"], None),
    "dpmpp_2m": (NAMED["dpmpp_2m"], None),
    "deis": ({**NAMED["deis"], "order": 2}, None),
    "unipc": (NAMED["unipc"], None),
    "heun": (NAMED["heun"], None),
    "fresh_noise": ({}, ("stochasticity", 1.0)),
    "jump": ({"solver": "jump"}, ("stochasticity", 1.0)),
}
_DIMENSION = 10


Few = Annotated[int, Range(10, 10**9)]


@dataclass(frozen=True)
class Budget:
    """How much is measured."""

    candidates: Count = 48
    """settings of the first round; half as many follow around the best."""
    samples: Few = 500
    """images of each in the first rung, three times as many in the next, and so on."""
    rungs: Count = 3
    """rungs of a round."""
    final_samples: Few = 5000
    """images of a set on the held-out seed."""
    repeats: Count = 3
    """such sets."""

    def __post_init__(self) -> None:
        check_values(self, "budget")


class Candidate(NamedTuple):
    """Settings to measure, and the point of the unit cube they come from; none for the default."""

    sampler: Sampler
    guidance: Guidance
    point: tuple[float, ...] | None
    family: str


class Trial(NamedTuple):
    """One measurement: the round and rung, on how many samples, and the score (lower is better)."""

    round: int
    rung: int
    samples: int
    score: float
    candidate: Candidate


def passes(sampler: Sampler, guidance: Guidance) -> int:
    """Network passes per image: an evaluation under guidance by a second pass is two."""
    low, high = guidance.interval
    twice = guidance.scale != 1.0 and guidance.kind not in ("input", "internal")
    return sum(2 if twice and low <= step.t <= high else 1 for step in sampler.plan())


def fitted(sampler: Sampler, guidance: Guidance, nfe: int) -> Sampler | None:
    """``sampler`` with the most steps that cost at most ``nfe``; None when not even one does."""
    for steps in range(nfe, 0, -1):
        try:
            tried = replace(sampler, steps=steps)
            if passes(tried, guidance) <= nfe:
                return tried
        except ValueError:  # a grid without so many times
            continue
    return None


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        base: gives the transport.
        nfe: network passes per image.
        guided: whether the model has a class to leave out.
        two_times: whether the model takes a second time.
        channels: of guidance, from the model's own settings.
    """

    base: Sampler
    nfe: int
    guided: bool
    two_times: bool = False
    channels: int | None = None

    @property
    def families(self) -> list[str]:
        """Solvers that this model and this budget allow."""
        return [
            name
            for name in FAMILIES
            if (name != "jump" or self.two_times) and (name != "heun" or self.nfe >= 3)
        ]

    def candidate(self, point: Sequence[float]) -> Candidate | None:
        """The settings of a point in [0, 1]^10; None where the budget is too small for them."""
        u = [min(max(float(v), 0.0), 1.0 - 1e-9) for v in point]
        families = self.families
        family = families[int(u[0] * len(families))]
        settings, amount = FAMILIES[family]
        settings = dict(settings)
        if amount is not None:
            settings[amount[0]] = round(amount[1] * u[1], 3)
        warp = (_between(0.7, 1.6, u[2]), _between(0.6, 1.4, u[3]), _between(0.7, 1.6, u[9]))
        gap = (_between(1e-4, 0.05, u[5]), _between(1e-3, 0.6, u[4]))
        settings["grid"] = Grid(warp, gap)
        guidance = Guidance()
        if self.guided and u[6] > 0.6:
            scale = round(1.0 + 2.0 * (u[6] - 0.6) / 0.4, 3)
            interval = (round(0.5 * u[7], 3), round(0.5 + 0.5 * u[8], 3))
            guidance = Guidance(scale, interval, self.channels)
        sampler = fitted(Sampler(self.base.transport, **settings), guidance, self.nfe)
        return None if sampler is None else Candidate(sampler, guidance, tuple(u), family)

    def spread(self, count: int, seed: int) -> list[Candidate]:
        """Candidates that cover the space evenly."""
        points = torch.quasirandom.SobolEngine(_DIMENSION, scramble=True, seed=seed).draw(count)
        return [c for c in map(self.candidate, points.tolist()) if c is not None]

    def around(self, best: Sequence[Candidate], count: int, seed: int) -> list[Candidate]:
        """Candidates near the ``best``, mostly with the same solver."""
        generator = torch.Generator().manual_seed(seed)
        parents = [c.point for c in best if c.point is not None]
        found: list[Candidate | None] = []
        for i in range(count if parents else 0):
            step = 0.12 * torch.randn(_DIMENSION, generator=generator)
            step[0] = 0.0 if torch.rand((), generator=generator) < 0.8 else step[0] * 4
            center = torch.tensor(parents[i % len(parents)])
            found.append(self.candidate((center + step).tolist()))
        return [candidate for candidate in found if candidate is not None]


def _between(low: float, high: float, u: float) -> float:
    """Log-uniform between two positive numbers, to three digits."""
    value = math.exp(math.log(low) + u * math.log(high / low))
    return float(f"{value:.3g}")


def search(
    space: Space,
    default: Candidate,
    score: Callable[[Candidate, int], float],
    budget: Budget,
    seed: int = 0,
    report: Callable[[Trial], None] = lambda trial: None,
) -> tuple[Candidate, list[Trial]]:
    """The best candidate of two rounds of successive halving, and all measurements.

    Args:
        space: what is searched.
        default: measured in every rung, as the yardstick.
        score: of a candidate on its first n samples; lower is better.
        budget: candidates, samples and rungs.
        seed: of the points.
        report: told of every measurement.
    """
    trials: list[Trial] = []
    pool = space.spread(budget.candidates, seed)
    best = pool[:1]
    for turn in (1, 2):
        for rung in range(budget.rungs):
            count = budget.samples * 3**rung
            scored = []
            for candidate in [default, *pool]:
                scored.append(Trial(turn, rung + 1, count, score(candidate, count), candidate))
                report(scored[-1])
            trials += scored
            scored.sort(key=lambda trial: trial.score)
            left = max(4 if rung < budget.rungs - 1 else 1, math.ceil(len(pool) / 3))
            pool = [t.candidate for t in scored if t.candidate is not default][:left]
        best = pool
        pool = best[:4] + space.around(best[:4], max(4, budget.candidates // 2), seed + 1)
    return best[0], trials
