"""The one residual of UCGM-T, and the regression target it implies.

With s <= m <= t, a field F* at (x_t, t) and the anchor point x_m = A(t, m) x_t + B(t, m) F*, the
flow map X = A x + B F of the network is asked to agree with itself along the field:

    G = [X(x_t; t->s) - X^-(x_m; m->s)] / B(t, m)         X^- without gradient

    m = s     G = F - F* exactly: diffusion and flow matching, no second pass
    m < t     consistency models, Shortcut, UCGM at 0 < lambda < 1 (arXiv 2505.07447, section 3.1)
    m -> t    G = T / b(t),  T = dX/dt along the field: continuous-time consistency, MeanFlow

The regression target is F_tgt = F - c phi(k G), without gradient, by one of the step rules

    one       k = 1      c = 1
    exact     k = 1      c = B(t, m) / B(t, s): F_tgt is the F whose jump lands on X^-; 1 at m = t
    cosine    k = cos    c = 1                                    (sCM, arXiv 2410.11081, section 4)
    ucgm      k = b      c = (sigma / D) 4 / sin(pi t / 2)        (arXiv 2505.07447, equation 8)
    relaxed   k = 1      c = 1 - sqrt(1 - t)                      (FACM, arXiv 2507.03738)

with b = B(t, m) / (t - m) where m < t, and phi an elementwise clamp, a division by the sample's
root mean square plus a constant, or the identity.  Everything here is in full precision.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ucgm.objective.passes import Network, Passes, bare, put, stand_in, take
from ucgm.objective.settings import ObjectiveSettings, StepRule
from ucgm.transport import HALF_PI, Transport, expand

Evaluate = Callable[[Tensor, Tensor], Tensor]


def finite_tangent(
    transport: Transport,
    prediction: Tensor,
    evaluate: Evaluate,
    x_t: Tensor,
    times: tuple[Tensor, Tensor, Tensor],
    field: Tensor,
) -> Tensor:
    """T = (X - X^-) / (t - m) for an anchor m < t.

    Args:
        transport: path and prediction.
        prediction: (B, ...) F at (x_t, t).
        evaluate: ``evaluate(x, time)`` is F^- at the destination s.
        x_t: (B, ...) state.
        times: (t, s, m), each (B,).
        field: (B, ...) F*.
    """
    t, s, m = times
    x_m = transport.jump(x_t, field, t, m)
    late = transport.jump(x_t, prediction, t, s)
    early = transport.jump(x_m, evaluate(x_m, m), m, s)
    return (late - early) / expand(t - m, x_t)


def difference_tangent(
    transport: Transport,
    evaluate: Evaluate,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    field: Tensor,
    step: float,
    central: bool,
) -> Tensor:
    """T (B, ...) = dX/dt along the field by finite differences of width ``step`` on each side.

    The points stay in [s, 1]: a central difference is one-sided at the borders.
    """
    late = (t + step).clamp(max=1.0) if central else t
    early = torch.maximum(t - step, s)
    ends = []
    for time in (late, early):
        x = transport.jump(x_t, field, t, time)
        ends.append(transport.jump(x, evaluate(x, time), time, s))
    return (ends[0] - ends[1]) / expand(late - early, x_t)


def jvp_tangent(
    transport: Transport, evaluate: Evaluate, x_t: Tensor, t: Tensor, s: Tensor, field: Tensor
) -> Tensor:
    """T = dX/dt along the field by forward-mode differentiation of (x, t) -> X(x; t->s)."""

    def flow_map(x: Tensor, time: Tensor) -> Tensor:
        return transport.jump(x, evaluate(x, time), time, s)

    direction = (transport.velocity(x_t, field, t), torch.ones_like(t))
    # Fused attention kernels have no forward-mode derivative.
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(flow_map, (x_t, t), direction)[1]


def speed(transport: Transport, t: Tensor, m: Tensor) -> Tensor:
    """b: B(t, m) / (t - m), and its limit where m = t."""
    limit = m == t
    gap = torch.where(limit, torch.ones_like(t), t - m)
    return torch.where(limit, transport.rate(t), transport.map(t, m)[1] / gap)


def phi(x: Tensor, clamp: float | None, normalize: float | None) -> Tensor:
    """Clamp of x (B, ...) to [-clamp, clamp], or x / (rms(x) + normalize) per sample."""
    if normalize is not None:
        rms = x.flatten(1).square().mean(1).sqrt()
        return x / (expand(rms, x) + normalize)
    return x if clamp is None else x.clamp(-clamp, clamp)


def step_factors(
    transport: Transport, rule: StepRule, t: Tensor, s: Tensor, m: Tensor
) -> tuple[Tensor, Tensor]:
    """(k, c) of the step rule, each (B,)."""
    one = torch.ones_like(t)
    if rule == "ucgm":
        at = transport.coefficients(t)
        # At t = 0 sigma is 0 as well, and the target is F itself.
        c = 4.0 * at.sigma / at.determinant / torch.sin(HALF_PI * t).clamp(min=1e-6)
        return speed(transport, t, m), c
    if rule == "cosine":
        return torch.cos(HALF_PI * t), one
    if rule == "relaxed":
        return one, 1.0 - torch.sqrt((1.0 - t).clamp(min=0.0))
    if rule == "exact":
        # In the limit the jump cannot be resolved from its anchor: the step is that of G itself.
        return one, torch.where(m == t, one, transport.map(t, m)[1] / transport.map(t, s)[1])
    return one, one


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
    limit = not passes.any_rank(bool((host.m != host.t)[moving].any()))
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
    """F (B, ...) of the trained network at s = t on the rows that move, 0 elsewhere; in float32."""
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
        """F^- (R, ...) whose jump ends at s, of one network step or of several composed."""
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
