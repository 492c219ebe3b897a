"""UCGM-S: one loop over a plan.

    F = network(x, t, y[, s]);   x <- sum_j (a_j x_{i-j} + b_j F_{i-j}) + n eps

All coefficients are scalars known before the first evaluation (:mod:`ucgm.sampler.plan`).  The
history keeps what later updates refer to; an update is a sum of scaled tensors and nothing else.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from ucgm.runtime.randomness import RowRandom, as_random
from ucgm.runtime.values import Range, Share, check_values
from ucgm.sampler.grid import Grid
from ucgm.sampler.guidance import Network, call
from ucgm.sampler.multistep import Integration, Rule, TimeVariable, Variable, adams_plan
from ucgm.sampler.plan import (
    History,
    NoiseRule,
    Restart,
    Step,
    fresh_shares,
    knots,
    renoised,
    restart_segments,
)
from ucgm.sampler.published import ucgm_plan
from ucgm.sampler.singlestep import Churn, euler_maruyama_plan, heun_plan, jump_plan
from ucgm.transport import Linear, Transport

SolverName = Literal["ucgm", "adams", "unipc", "heun", "euler_maruyama", "jump"]
# Highest order, and the settings that are read beside steps, grid and restart.
READS: dict[str, tuple[int, frozenset[str]]] = {
    "ucgm": (2, frozenset({"stochasticity", "noise", "extrapolation"})),
    "adams": (4, frozenset({"extrapolation", "variable", "time_variable", "integration"})),
    "unipc": (3, frozenset({"variable", "time_variable", "integration"})),
    "heun": (1, frozenset({"variable", "churn"})),
    "euler_maruyama": (1, frozenset({"stochasticity"})),
    "jump": (1, frozenset({"stochasticity", "noise"})),
}


class State(NamedTuple):
    """Input x_t and estimates x_hat, z_hat (B, ...) of the evaluation at time ``t``."""

    x_t: Tensor
    t: float
    x_hat: Tensor
    z_hat: Tensor


@dataclass(frozen=True)
class Sampler:
    """A sampler is its settings; calling it turns noise into samples.

    ``steps`` is the number of grid points; ``nfe`` the number of network calls.  The table in
    ``docs/sampler.md`` gives the settings of the samplers by their usual names.
    """

    transport: Transport = Linear()
    """path and prediction of the model; a run's sampler takes them from its objective."""
    steps: Annotated[int, Range(1, 100_000)] = 20
    """number of steps."""
    order: Annotated[int, Range(1, 9)] = 1
    """of the solvers that have one: ucgm 1 or 2 (two evaluations a step), adams 1 to 4, unipc 1
    to 3."""
    stochasticity: Share = 0.0
    """amount of fresh noise, 0 to 1: 0 is the ODE; the rule `noise` says what 1 is."""
    extrapolation: Annotated[float, Range(-2.0, 2.0)] = 0.0
    """kappa, extrapolation of the estimates along their last difference."""
    grid: Grid = Grid()
    """times of the evaluations."""
    solver: SolverName = "ucgm"
    """ucgm (as published; DDIM, DDPM, consistency), adams, unipc, heun, euler_maruyama, jump."""
    variable: Variable = "velocity"
    """estimate that adams, unipc and heun treat as a polynomial: velocity, noise or data."""
    time_variable: TimeVariable = "time"
    """what adams and unipc take it to be a polynomial of: time, sigma (over alpha) or log_snr."""
    integration: Integration = "exact"
    """integral of that polynomial over a step: exact, or its value at the midpoint (DPM++ 2M)."""
    noise: NoiseRule = "share"
    """per step, share of the noise's variance that is fresh at stochasticity r: share is r itself
    (1 is consistency sampling), ddim r^2 of DDPM's, auto r of the reverse SDE's."""
    churn: Churn = Churn()
    """renoising before the steps of heun."""
    restart: Restart | None = None
    """solve an interval of times several times; null: once."""

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        check_values(self, "sampler")
        solver, order, amount = self.solver, self.order, self.stochasticity
        highest, reads = READS[solver]
        if not 1 <= order <= highest:
            allowed = f"1 to {highest}" if highest > 1 else "1"
            raise ValueError(f"sampler.order of solver {solver} must be {allowed}, got {order}")
        for f in fields(self):
            others = [name for name, (_, known) in READS.items() if f.name in known]
            if others and f.name not in reads and getattr(self, f.name) != f.default:
                raise ValueError(
                    f"sampler.{f.name} is not a setting of solver {solver}: leave it out, or "
                    f"choose the solver from {', '.join(others)}"
                )
        if order > 1 and amount > 0:
            raise ValueError(
                f"sampler.order {order} has no stochastic form: set stochasticity to 0"
            )
        if solver == "adams" and order > 1 and self.extrapolation:
            raise ValueError("sampler.extrapolation of solver adams is a setting of order 1")

    @classmethod
    def paper(
        cls,
        transport: Transport,
        nfe: int,
        order: int = 1,
        stochasticity: float = 0.0,
        extrapolation: float = 0.0,
        warp: tuple[float, float, float] = (1.0, 1.0, 1.0),
        gap: tuple[float, float] = (0.001, 0.001),
    ) -> "Sampler":
        """UCGM-S with the arguments of the published code: order 2 makes (nfe + 1) // 2 steps."""
        steps = (nfe + 1) // 2 if order == 2 else nfe
        return cls(transport, steps, order, stochasticity, extrapolation, Grid(warp, gap))

    def plan(self) -> list[Step]:
        """The evaluations and updates, as data.

        Raises:
            ValueError: where the grid has no such times.
        """
        return list(_plan(self))

    @property
    def nfe(self) -> int:
        """Number of network calls; a guided call is one here and two passes per image."""
        return len(_plan(self))

    def _solve(self, times: list[float]) -> list[Step]:
        """The plan of one falling stretch of times."""
        path = knots(self.transport, times)
        rule = Rule(self.transport, self.variable, self.time_variable, self.integration)
        if self.solver == "adams":
            return adams_plan(rule, path, self.order, self.extrapolation)
        if self.solver == "unipc":
            return adams_plan(rule, path, self.order, correct=True)
        if self.solver == "heun":
            return heun_plan(rule, path, self.churn)
        if self.solver == "euler_maruyama":
            return euler_maruyama_plan(path, self.stochasticity)
        shares = fresh_shares(path, self.noise, self.stochasticity)
        if self.solver == "jump":
            return jump_plan(self.transport, path, shares)
        return ucgm_plan(path, self.order, shares, self.extrapolation)

    @torch.no_grad()
    def __call__(
        self,
        network: Network,
        z: Tensor,
        y: Tensor | None = None,
        generator: RowRandom | torch.Generator | None = None,
    ) -> Tensor:
        """Samples (B, C, H, W) from noise.

        Args:
            network: ``network(x_t, t, y[, s]) -> F`` in the transport's convention.
            z: (B, C, H, W) standard normal noise.
            y: (B,) int64 labels, or None without classes.
            generator: of the fresh noise; unused when the plan has none.

        Raises:
            ValueError: labels out of range, or a network whose output is not of the state's shape.
        """
        x = z
        for found in self.evaluations(network, z, y, generator):
            x = found[-1]
            del found  # no tensor of this evaluation lies beside the next
        return x

    @torch.no_grad()
    def trajectory(
        self,
        network: Network,
        z: Tensor,
        y: Tensor | None = None,
        generator: RowRandom | torch.Generator | None = None,
    ) -> Iterator[State]:
        """States of all evaluations from z (B, ...); for most solvers the sample is the last
        x_hat.
        """
        at = knots(self.transport, [step.t for step in _plan(self)])
        found = self.evaluations(network, z, y, generator)
        for knot, (x, prediction, _) in zip(at, found, strict=True):
            a, b = knot.estimate(1.0, 0.0), knot.estimate(0.0, 1.0)
            yield State(x, knot.t, *(p * x + q * prediction for p, q in (a, b)))

    def evaluations(
        self,
        network: Network,
        z: Tensor,
        y: Tensor | None,
        generator: RowRandom | torch.Generator | None,
    ) -> Generator[tuple[Tensor, Tensor, Tensor], Tensor | None]:
        """State, prediction there, and state after the update (B, C, H, W), of every evaluation;
        a state that is sent replaces the last one.  Arguments are those of a call.
        """
        _check_labels(network, y, len(z))
        plan, x = _plan(self), z if z.dtype == torch.float64 else z.float()
        history, at = History(plan), getattr(network, "at", None)
        random = as_random(generator, len(z), z.device) if any(s.noise for s in plan) else None
        # (N, 2, B), t and the second time of every evaluation, in one copy to the device.
        pairs = [(step.t, step.t if step.second is None else step.second) for step in plan]
        times = torch.tensor(pairs, dtype=x.dtype, device=z.device)[..., None]
        for i, step in enumerate(plan):
            t, second = times[i].expand(-1, len(z))
            now = at(step.t) if at else network  # guidance is decided by the plan's time
            prediction = call(now, x, t, y, None if step.second is None else second)
            if prediction.shape != x.shape:
                raise ValueError(
                    f"the network returned {tuple(prediction.shape)} for a state of shape "
                    f"{tuple(x.shape)}: it must return F alone, without a learned variance"
                )
            after = history.advance(i, x, prediction, random)
            sent = yield x, prediction, after
            x = after if sent is None else sent
            del prediction, after, sent


@lru_cache(maxsize=64)
def _plan(sampler: Sampler) -> tuple[Step, ...]:
    """The plan of a sampler, made once."""
    times = sampler.grid.times(sampler.steps, sampler.transport).tolist()
    segments = restart_segments(times, sampler.restart) if sampler.restart else [times]
    plan: list[Step] = []
    for segment in segments:
        if plan and segment[0] > plan[-1].s:
            low, high = knots(sampler.transport, [plan[-1].s, segment[0]])
            plan[-1] = renoised(plan[-1], low, high)
        plan += sampler._solve(segment)
    return tuple(plan)


def _check_labels(network: Network, y: Tensor | None, rows: int) -> None:
    """Labels must be (B,) int64 of the network's classes, or its null class."""
    if y is None:
        return
    if y.shape != (rows,) or y.dtype != torch.int64:
        raise ValueError(f"y must be ({rows},) int64 labels, got {tuple(y.shape)} {y.dtype}")
    classes = getattr(network, "num_classes", None)
    if classes and rows and not bool(((y >= 0) & (y <= classes)).all()):
        raise ValueError(
            f"labels must be 0 to {classes - 1}, or {classes} for no class; they are "
            f"{int(y.min())} to {int(y.max())}"
        )
