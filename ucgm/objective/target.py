"""F_tgt = F - c phi(k G) for the rows whose anchor lies after the destination."""

import torch
from torch import Tensor

from ucgm.objective.passes import Network, Passes, bare, put, stand_in, take
from ucgm.objective.residual import (
    difference_tangent,
    finite_tangent,
    jvp_tangent,
    phi,
    speed,
    step_factors,
)
from ucgm.objective.settings import ObjectiveSettings
from ucgm.transport import Transport, expand


def consistency_target(
    objective: ObjectiveSettings,
    passes: Passes,
    second: Network,
    x_t: Tensor,
    prediction: Tensor,
    field: Tensor,
    progress: float,
) -> Tensor:
    """F_tgt (B, ...): the field itself where m = s, the stepped target elsewhere.

    Args:
        objective: the settings.
        passes: makes the passes.
        second: network of X^-.
        x_t: (B, ...) states.
        prediction: (B, ...) F of the gradient pass, detached.
        field: (B, ...) F*.
        progress: share of the run that is done, for the tangent warm-up.
    """
    draw, host = passes.draw, passes.draw.host
    assert host is not None and draw.s is not None and draw.m is not None
    moving = host.m > host.s
    if not passes.anywhere(moving):
        return field
    index = passes.index(stand_in(moving))
    x, t, s, m, y = (take(v, index) for v in (x_t, draw.t, draw.s, draw.m, draw.y))
    wish, said = take(field, index), take(prediction, index)
    limit = not passes.somewhere(bool((host.m != host.t)[moving].any()))
    coarse = torch.is_autocast_enabled(x_t.device.type)
    tangents = Tangents(objective, passes, second, index, y, s, coarse)
    along = wish if passes.velocity is None else take(passes.velocity, index)
    # Differences of two network outputs over a small gap need float32 (and the jvp its parts).
    with torch.autocast(x_t.device.type, enabled=False):
        tangent = tangents(x, t, m, said, along, limit)
        residual = tangent / expand(speed(objective.transport, t, m), x) + (along - wish)
        if progress < objective.tangent_warmup:
            plain = said - wish
            residual = plain + (progress / objective.tangent_warmup) * (residual - plain)
        inner, outer = step_factors(objective.transport, objective.step_rule, t, s, m)
        change = phi(expand(inner, x) * residual, objective.clamp, objective.normalize)
        stepped = said - expand(outer, x) * change
    if not bool(moving.any()):
        return field
    if index is None and not bool(moving.all()):
        moves = moving.to(x_t.device, non_blocking=True)
        return torch.where(expand(moves, x_t), stepped, field)
    return put(field, index, stepped)


def own_velocity(passes: Passes, x_t: Tensor) -> Tensor:
    """F of the trained network at s = t on the rows that move, 0 elsewhere; in float32."""
    draw, host = passes.draw, passes.draw.host
    assert host is not None
    with torch.autocast(x_t.device.type, enabled=False):
        moving = host.m > host.s
        return passes.on_rows(passes.network, moving, x_t, draw.t, draw.y, draw.t)


class Tangents:
    """T of a set of rows by the method of the objective, with passes of the bare network."""

    def __init__(
        self,
        objective: ObjectiveSettings,
        passes: Passes,
        second: Network,
        index: Tensor | None,
        y: Tensor | None,
        s: Tensor,
        coarse: bool,
    ) -> None:
        self.objective = objective
        self.passes = passes
        self.second = bare(second)
        self.index = index
        self.y = y
        self.s = s
        # Whether the gradient pass ran in half precision.
        self.coarse = coarse

    @property
    def transport(self) -> Transport:
        """The path."""
        return self.objective.transport

    def evaluate(self, x: Tensor, time: Tensor) -> Tensor:
        """F^- whose jump ends at s, of one network step or of several composed."""
        n = self.objective.compose_steps
        start, state = x, x
        for i in range(n):
            now = time + (self.s - time) * (i / n)
            later = self.s if i == n - 1 else time + (self.s - time) * ((i + 1) / n)
            said = self.passes.call(self.second, state, now, self.y, later, self.index)
            if n == 1:
                return said
            state = self.transport.jump(state, said, now, later)
        a, b = (expand(c, x) for c in self.transport.map(time, self.s))
        return (state - a * start) / b

    def __call__(
        self, x: Tensor, t: Tensor, m: Tensor, said: Tensor, along: Tensor, limit: bool
    ) -> Tensor:
        """T (R, ...) at rows already selected."""
        objective, transport = self.objective, self.transport
        if not limit:
            if objective.tangent == "forward" and objective.consistency_ratio == 1.0:
                # Too coarse for a difference over a small gap.
                if self.coarse:
                    said = self.passes.call(
                        bare(self.passes.network), x, t, self.y, self.s, self.index
                    )
            return finite_tangent(transport, said, self.evaluate, x, (t, self.s, m), along)
        if objective.tangent == "jvp":
            self.passes.tangent = True
            tangent = jvp_tangent(transport, self.evaluate, x, t, self.s, along)
            self.passes.tangent = False
            return tangent
        return difference_tangent(
            transport, self.evaluate, x, t, self.s, along, objective.tangent_step, True
        )
