"""UCGM-S: one loop over a plan.

    F = network(x, t, y);   x <- sum_j (a_j x_{i-j} + b_j F_{i-j}) + n eps

All coefficients are scalars known before the first evaluation.  Only the states and predictions
that a later update refers to are kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ucgm.randomness import RowRandom, as_random
from ucgm.sampler.grids import Grid
from ucgm.sampler.guidance import Network, call
from ucgm.sampler.plan import Step, ucgm_plan
from ucgm.transport import Linear, Transport


class State(NamedTuple):
    """What an evaluation saw and said: x_t, x_hat, z_hat (B, ...) at the time ``t``."""

    x_t: Tensor
    t: float
    x_hat: Tensor
    z_hat: Tensor


@dataclass(frozen=True)
class Sampler:
    """A sampler is its settings; calling it turns noise into samples.

    ``steps`` is the number of grid points: NFE is ``steps`` at order 1 and ``2 steps - 1`` at
    order 2.
    """

    transport: Transport = Linear()
    """path and prediction of the model; a run's sampler takes them from its objective."""
    steps: int = 20
    """number of steps."""
    order: int = 1
    """1: DDIM-like; 2: with a trapezoid corrector (two evaluations a step)."""
    stochasticity: float = 0.0
    """share of the noise's variance that is fresh at each step: 0 ODE, 1 consistency sampling."""
    extrapolation: float = 0.0
    """kappa, extrapolation of the estimates along their last difference."""
    grid: Grid = Grid()
    """times of the evaluations."""

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        if self.steps < 1:
            raise ValueError(f"sampler.steps must be at least 1, got {self.steps}")
        if self.order not in (1, 2):
            raise ValueError(f"sampler.order must be 1 or 2, got {self.order}")
        if not 0.0 <= self.stochasticity <= 1.0:
            raise ValueError(f"sampler.stochasticity must be in [0, 1], got {self.stochasticity}")
        if self.order == 2 and self.stochasticity > 0:
            raise ValueError("sampler.order 2 has no stochastic form: set stochasticity to 0")

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
        """The evaluations and updates, as data."""
        times = self.grid.times(self.steps)
        return ucgm_plan(self.transport, times, self.order, self.stochasticity, self.extrapolation)

    @property
    def nfe(self) -> int:
        """Number of network calls; a guided call is one here and two passes per image."""
        return self.steps if self.order == 1 else 2 * self.steps - 1

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
            network: ``network(x_t, t, y) -> F`` in the transport's convention.
            z: (B, C, H, W) standard normal noise.
            y: (B,) int64 labels, or None without classes.
            generator: of the fresh noise; unused at stochasticity 0.
        """
        x = z
        for _, _, x in self._run(network, z, y, generator):
            pass
        return x

    @torch.no_grad()
    def trajectory(
        self,
        network: Network,
        z: Tensor,
        y: Tensor | None = None,
        generator: RowRandom | torch.Generator | None = None,
    ) -> Iterator[State]:
        """The state of every evaluation in order; the sample is the last ``x_hat``."""
        for step, (x, prediction), _ in self._run(network, z, y, generator):
            t = torch.full((len(x),), step.t, dtype=torch.float64, device="cpu")
            c = [float(v[0]) for v in self.transport.coefficients(t)]
            alpha, sigma, alpha_pred, sigma_pred = c
            d = sigma * alpha_pred - alpha * sigma_pred
            x_hat = (sigma * prediction - sigma_pred * x) / d
            z_hat = (alpha_pred * x - alpha * prediction) / d
            yield State(x, step.t, x_hat, z_hat)

    def _run(
        self,
        network: Network,
        z: Tensor,
        y: Tensor | None,
        generator: RowRandom | torch.Generator | None,
    ) -> Iterator[tuple[Step, tuple[Tensor, Tensor], Tensor]]:
        """(step, (state, prediction), next state) of every evaluation."""
        plan = self.plan()
        depth = max(len(step.weights) for step in plan)
        noisy = any(step.noise for step in plan)
        random = as_random(generator, len(z), z.device) if noisy else None
        dtype = z.dtype if z.dtype == torch.float64 else torch.float32
        x = z.to(dtype)
        history: list[tuple[Tensor, Tensor]] = []
        for step in plan:
            t = torch.full((len(z),), step.t, dtype=dtype, device=z.device)
            at = getattr(network, "at", None)
            prediction = call(at(step.t) if at else network, x, t, y, None).to(dtype)
            known = [(x, prediction), *history]
            following = _combine(step.weights, known)
            if step.noise and random is not None:
                following = following.add(
                    random.normal(*z.shape[1:], dtype=dtype), alpha=step.noise
                )
            yield step, known[0], following
            if step.remember:
                history = known[: depth - 1]
            x = following


def _combine(
    weights: tuple[tuple[float, float], ...], known: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """sum_j a_j x_j + b_j F_j."""
    total: Tensor | None = None
    for (a, b), (x, prediction) in zip(weights, known, strict=False):
        for weight, tensor in ((a, x), (b, prediction)):
            total = tensor * weight if total is None else total.add(tensor, alpha=weight)
    assert total is not None
    return total
