"""The one residual of UCGM-T, and the regression target it implies.

With s <= m <= t, a field F* at (x_t, t) and the anchor point x_m = A(t, m) x_t + B(t, m) F*, the
flow map X = A x + B F of the network is asked to agree with itself along the field:

    G = [X(x_t; t->s) - X^-(x_m; m->s)] / B(t, m)         X^- without gradient

    m = s     G = F - F* exactly: diffusion and flow matching, no second pass
    m < t     consistency models, Shortcut, UCGM at 0 < lambda < 1 (arXiv 2505.07447, section 3.1)
    m -> t    G = T / b(t),  T = dX/dt along the field: continuous-time consistency, MeanFlow

The anchor is m = s + lambda (t - s): lambda = 0 is m = s, lambda = 1 the limit m -> t.  Some
methods move it with the progress p of the run, from 0 to 1:

    ect     the noise level nu = sigma / alpha of m is nu_t (1 - q^-(k+1) (1 + 8 sigmoid(-nu_t))),
            with q = 2 and k = floor(8 p) doublings (arXiv 2406.14548, section 4)
    alpha   lambda = 1 - a,  a falling from 1 to 0 along a sigmoid of p between the two shares of
            ``anchor_window`` (arXiv 2510.20771): a = 1 is flow matching, a = 0 MeanFlow
    soflow  lambda = 1 - r,  r = 0.1 (0.002 / 0.1)^p, and m <= t - 1e-4 (arXiv 2512.15657)

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

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ucgm.objective.draw import Draw
from ucgm.objective.fields import guided_jump
from ucgm.objective.passes import Passes, place, stand_in, take
from ucgm.objective.settings import ObjectiveSettings, StepRule
from ucgm.objective.tangents import (
    LIMITS,
    finite_tangent,
    first_part,
    speed,
)
from ucgm.transport import HALF_PI, Transport, expand


def alpha_of_progress(progress: float, window: tuple[float, float] = (0.0, 1.0)) -> float:
    """AlphaFlow's a: a sigmoid of steepness 25 over the window, set to 1 and 0 within 0.005."""
    start, end = window
    if not start <= progress <= end:
        return 1.0 if progress < start else 0.0
    share = (progress - start) / max(end - start, 1e-9)
    a = 1.0 / (1.0 + math.exp(25.0 * (share - 0.5)))
    return 1.0 if a > 0.995 else 0.0 if a < 0.005 else a


def anchor(objective: ObjectiveSettings, t: Tensor, s: Tensor, progress: float) -> Tensor:
    """m in [s, t] for t, s (B,) at a share of the run; m = t stands for the limit m -> t.

    The tangent ``forward`` takes the limit by an anchor of its own, ``tangent_step`` before t.
    """
    schedule, ratio = objective.anchor_schedule, objective.consistency_ratio
    if schedule == "ect":
        transport = objective.transport
        level = torch.exp(-0.5 * transport.log_snr(t))
        shrink = 1.0 - 2.0 ** -(int(8 * min(progress, 0.999)) + 1) * (
            1.0 + 8.0 * torch.sigmoid(-level)
        )
        earlier = transport.time_at_log_snr(-2.0 * torch.log((level * shrink).clamp(min=1e-12)))
        m = torch.where(shrink > 0, torch.maximum(earlier, s), s)
    else:
        if schedule == "soflow":
            ratio = 1.0 - 0.1 * 0.02**progress
        elif schedule == "alpha":
            ratio = 1.0 - alpha_of_progress(progress, objective.anchor_window)
        m = t if ratio == 1.0 else s + ratio * (t - s)
        if schedule == "soflow":
            m = torch.maximum(torch.minimum(m, t - 1e-4), s)
        if objective.destination is not None and objective.destination.smallest:
            m = torch.where(t - s <= 1.001 * objective.destination.smallest, s, m)
    if schedule == "ect" or ratio < 1.0:  # a gap below the last digit of t is none
        m = torch.where(m == t, s, m)
    if objective.tangent == "forward":
        m = torch.where(m == t, torch.maximum(t - objective.tangent_step, s), m)
    return m


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
    return (
        target
        if limit is None
        else torch.where(expand(m < t, target), target.clamp(-limit, limit), target)
    )


def without_anchor(
    objective: ObjectiveSettings, prediction: Tensor, field: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """F_tgt (B, ...) where m = s and G = F - F*: the field, or F - c phi(k G), if s < t.

    F, F* (B, ...), t, s (B,).  Rows of a grid's smallest jump learn the field as it is.
    """
    if not objective.clamp_near and objective.target_clamp is None:
        return field
    smallest = 0.0 if objective.destination is None else objective.destination.smallest
    target = field
    if objective.clamp_near:
        target = stepped(objective, prediction, prediction - field, t, s, s)
    elif objective.target_clamp is not None:
        target = field.clamp(-objective.target_clamp, objective.target_clamp)
    return torch.where(expand(t - s > 1.001 * smallest, field), target, field)


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
    direction: Tensor,
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
        direction: (B, ...) F along which X is differentiated: F*, or the network's own at s = t.
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
    prediction, direction, at_rows = (take(v, index) for v in (prediction, direction, field))

    def step(state: Tensor, now: Tensor, later: Tensor) -> Tensor:
        if objective.state_clamp is not None:
            state = state.clamp(-objective.state_clamp, objective.state_clamp)
        if objective.field == "jump":
            state = place(x_t, stand_in(rows), index, state)
            return take(guided_jump(objective, passes, draw, state, at_m, at_s), index)
        return passes.call(objective.residual_network, state, now, y, later, index)

    def evaluate(state: Tensor, time: Tensor) -> Tensor:
        return composed(path, step, state, time, s, objective.compose_steps)

    # A difference of two outputs over a small gap needs float32; a derivative does not.
    coarse = objective.tangent == "forward" and torch.is_autocast_enabled(x_t.device.type)
    derived = continuous and objective.tangent == "jvp"
    with contextlib.nullcontext() if derived else torch.autocast(x.device.type, enabled=False):
        if continuous:
            inputs = (x, t, s, direction, objective.tangent_step, prediction)
            tangent = LIMITS[objective.tangent](path, evaluate, *inputs)
        else:
            late = passes.call("online", x, t, y, s, index) if coarse else prediction
            tangent = finite_tangent(path, late, evaluate, x, (t, s, m), direction)
        residual = tangent / expand(speed(path, t, m), x) + (direction - at_rows)
        if progress < objective.tangent_warmup:
            plain = first_part(path, x, prediction, t, s, at_rows)
            residual = torch.lerp(plain, residual, progress / objective.tangent_warmup)
        target = stepped(objective, prediction, residual, t, s, m)
    return place(simple, rows, index, target)
