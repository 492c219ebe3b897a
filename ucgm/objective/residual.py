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
root mean square plus a constant, or the identity; ``target_clamp`` then clamps F_tgt itself.  Sums
are in full precision; so are the passes under finite differences, while those under a forward
derivative keep the autocast of the step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ucgm.objective.draw import Draw
from ucgm.objective.fields import guided_jump
from ucgm.objective.passes import Passes, forward_mode, place, stand_in, take
from ucgm.objective.settings import ObjectiveSettings, StepRule
from ucgm.transport import HALF_PI, Transport, expand

Evaluate = Callable[[Tensor, Tensor], Tensor]
"""F (B, ...) of the jump to s from a state (B, ...) at a time (B,)."""


def finite_tangent(
    transport: Transport,
    prediction: Tensor,
    evaluate: Evaluate,
    x_t: Tensor,
    times: tuple[Tensor, Tensor, Tensor],
    field: Tensor,
) -> Tensor:
    """T = (X - X^-) / (t - m) for an anchor m < t, of ``times`` (t, s, m), each (B,).

    x_t, F there (the ``prediction``), F* (B, ...); ``evaluate(x, time)`` is F^- for the jump to s.
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
) -> Tensor:
    """T = dX/dt along the field by central differences with ``step`` to each side.

    x_t, F* (B, ...), t, s (B,).  At the borders of [s, 1] one side is shorter.
    """
    late, early = (t + step).clamp(max=1.0), torch.maximum(t - step, s)
    ends = []
    for time in (late, early):
        x = transport.jump(x_t, field, t, time)
        ends.append(transport.jump(x, evaluate(x, time), time, s))
    return (ends[0] - ends[1]) / expand(late - early, x_t)


def prediction_tangent(
    transport: Transport,
    evaluate: Evaluate,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    field: Tensor,
    step: float,
    prediction: Tensor,
) -> Tensor:
    """T = A' x_t + B' F + A v* + B dF/dt, with dF/dt alone by central differences.

    x_t, F, F* (B, ...), t, s (B,).  The points may leave [s, 1] (TiM, arXiv 2509.04394, its code).
    """
    ends = [evaluate(transport.jump(x_t, field, t, time), time) for time in (t + step, t - step)]
    rates = torch.func.jvp(lambda t: transport.map(t, s), (t,), (torch.ones_like(t),))[1]
    b = expand(transport.map(t, s)[1], x_t)
    first = first_part(transport, x_t, prediction, t, s, field) * expand(transport.rate(t), x_t)
    return first + expand(rates[0], x_t) * x_t + b * (ends[0] - ends[1]) / (2.0 * step)


def jvp_tangent(
    transport: Transport, evaluate: Evaluate, x_t: Tensor, t: Tensor, s: Tensor, field: Tensor
) -> Tensor:
    """T = dX/dt along the field by forward-mode differentiation of (x, t) -> X(x; t->s).

    x_t, F* (B, ...), t, s (B,); to be called under :func:`ucgm.objective.passes.forward_mode`.
    """

    def flow_map(x: Tensor, time: Tensor) -> Tensor:
        return transport.jump(x, evaluate(x, time), time, s)

    direction = (transport.velocity(x_t, field, t), torch.ones_like(t))
    return torch.func.jvp(flow_map, (x_t, t), direction)[1]


def limit_tangent(
    objective: ObjectiveSettings,
    evaluate: Evaluate,
    at: tuple[Tensor, Tensor, Tensor, Tensor],
    prediction: Tensor,
    step: float,
) -> Tensor:
    """T in the limit m -> t, by the setting ``tangent``; ``at`` is (x_t, t, s, F*); F (B, ...)."""
    path = objective.transport
    if objective.tangent == "jvp":
        return jvp_tangent(path, evaluate, *at)
    if objective.tangent == "central_prediction":
        return prediction_tangent(path, evaluate, *at, step, prediction)
    return difference_tangent(path, evaluate, *at, step)


def speed(transport: Transport, t: Tensor, m: Tensor) -> Tensor:
    """b (B,): B(t, m) / (t - m) at t, m (B,), and its limit where m = t."""
    same = m == t
    gap = torch.where(same, torch.ones_like(t), t - m)
    return torch.where(same, transport.rate(t), transport.map(t, m)[1] / gap)


def first_part(
    transport: Transport, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, field: Tensor
) -> Tensor:
    """(B' F + A v*) / b (B, ...), the part of G that compares F with F*, B' = dB(t, s)/dt.

    The rest, (A' x_t + B dF/dt) / b, is what a tangent warm-up ramps up (sCM, arXiv 2410.11081,
    section 4.1).  x_t, F, F* (B, ...), t, s (B,); on the linear path it is F - F*.
    """
    rate = torch.func.jvp(lambda t: transport.map(t, s)[1], (t,), (torch.ones_like(t),))[1]
    moved = expand(transport.map(t, s)[0], x_t) * transport.velocity(x_t, field, t)
    return (expand(rate, x_t) * prediction + moved) / expand(transport.rate(t), x_t)


def phi(x: Tensor, clamp: float | None, normalize: float | None) -> Tensor:
    """x (B, ...) clamped to [-clamp, clamp], or x / (rms(x) + normalize) per sample."""
    if normalize is not None:
        rms = x.flatten(1).square().mean(1).sqrt()
        return x / (expand(rms, x) + normalize)
    return x if clamp is None else x.clamp(-clamp, clamp)


def step_factors(
    transport: Transport, rule: StepRule, t: Tensor, s: Tensor, m: Tensor
) -> tuple[Tensor, Tensor]:
    """(k, c) of the step rule at t, s, m (B,), each (B,)."""
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


def stepped(
    objective: ObjectiveSettings,
    prediction: Tensor,
    residual: Tensor,
    t: Tensor,
    s: Tensor,
    m: Tensor,
) -> Tensor:
    """F - c phi(k G) (B, ...), clamped where m < t; F, G (B, ...), t, s, m (B,)."""
    k, c = step_factors(objective.transport, objective.step_rule, t, s, m)
    change = phi(expand(k, residual) * residual, objective.clamp, objective.normalize)
    target, limit = prediction - expand(c, residual) * change, objective.target_clamp
    if limit is None:
        return target
    return torch.where(expand(m < t, target), target.clamp(-limit, limit), target)


def without_anchor(
    objective: ObjectiveSettings, prediction: Tensor, field: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """F_tgt (B, ...) where m = s and G = F - F*: the field, or F - c phi(k G), if s < t.

    F, F* (B, ...), t, s (B,).  Rows of a grid's smallest jump learn the field as it is.
    """
    limit = objective.target_clamp
    if objective.clamp_near:
        target = stepped(objective, prediction, prediction - field, t, s, s)
    elif limit is not None:
        target = field.clamp(-limit, limit)
    else:
        return field
    return torch.where(expand(t - s > 1.001 * objective.smallest_jump, field), target, field)


def composed(
    transport: Transport,
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    time: Tensor,
    s: Tensor,
    n: int,
) -> Tensor:
    """F (B, ...) whose jump from x (B, ...) at ``time`` (B,) ends at s (B,) where n steps end.

    ``step(x, time, later)`` is F of one step of the network.
    """
    state = x
    for i in range(n):
        now = time + (s - time) * (i / n)
        later = s if i == n - 1 else time + (s - time) * ((i + 1) / n)
        prediction = step(state, now, later)
        if n == 1:
            return prediction
        state = transport.jump(state, prediction, now, later)
    a, b = (expand(c, x) for c in transport.map(time, s))
    # Where time and s are one, the path has no length and its F is that of any step of it.
    return torch.where(b == 0, prediction, (state - a * x) / torch.where(b == 0, 1.0, b))


def consistency_target(
    objective: ObjectiveSettings,
    passes: Passes,
    draw: Draw,
    x_t: Tensor,
    prediction: Tensor,
    field: Tensor,
    velocity: Tensor | None,
    progress: float,
) -> Tensor:
    """F_tgt = F - c phi(k G) (B, ...); the field itself where m = s and phi is the identity.

    Args:
        objective: the settings; X^- is of their ``residual_network``.
        passes: makes the passes, of the bare networks.
        draw: the complete draw.
        x_t: (B, ...) states.
        prediction: (B, ...) F of the gradient pass, detached.
        field: (B, ...) F*.
        velocity: (B, ...) F along which X is differentiated, the network's own at s = t; None: F*.
        progress: share of the run that is done, for the tangent warm-up.
    """
    host, at_m, at_s = draw.host, draw.m, draw.s
    assert host is not None and at_s is not None and at_m is not None
    simple = without_anchor(objective, prediction, field, draw.t, at_s)
    rows = host.m > host.s
    if not passes.anywhere(rows):
        return simple
    continuous = not passes.any_rank(bool((host.m != host.t)[rows].any()))  # m = t everywhere
    index, path = passes.index(stand_in(rows)), objective.transport
    x, t, s, m, y = (take(v, index) for v in (x_t, draw.t, at_s, at_m, draw.y))
    prediction, at_rows = take(prediction, index), take(field, index)
    direction = at_rows if velocity is None else take(velocity, index)

    def step(state: Tensor, now: Tensor, later: Tensor) -> Tensor:
        if objective.state_clamp is not None:
            state = state.clamp(-objective.state_clamp, objective.state_clamp)
        if objective.field == "jump":
            state = place(x_t, stand_in(rows), index, state)
            return take(guided_jump(objective, passes, draw, state, at_m, at_s), index)
        return passes.call(objective.residual_network, state, now, y, later, index)

    def evaluate(state: Tensor, time: Tensor) -> Tensor:
        return composed(path, step, state, time, s, objective.compose_steps)

    # A difference over a small gap needs float32, and in TF32 a gap of 0.01; a derivative does not.
    kind, coarse = objective.tangent, torch.is_autocast_enabled(x_t.device.type)
    derived, again = continuous and kind == "jvp", coarse and kind == "forward"
    width = max(objective.tangent_step, 0.01 * coarse)
    with forward_mode() if derived else torch.autocast(x.device.type, enabled=False):
        if continuous:
            tangent = limit_tangent(objective, evaluate, (x, t, s, direction), prediction, width)
        else:
            late = passes.call("online", x, t, y, s, index) if again else prediction
            tangent = finite_tangent(path, late, evaluate, x, (t, s, m), direction)
    residual = tangent / expand(speed(path, t, m), x) + (direction - at_rows)
    if progress < objective.tangent_warmup:
        plain = first_part(path, x, prediction, t, s, at_rows)
        residual = torch.lerp(plain, residual, progress / objective.tangent_warmup)
    target = stepped(objective, prediction, residual, t, s, m)
    return place(simple, rows, index, target)
