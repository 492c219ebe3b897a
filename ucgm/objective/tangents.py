"""The tangent T: how X(x; t->s) changes as its start moves along the field, by one of four ways.

T = dX/dt = (X - X^-) / (t - m)      with an anchor m < t, or in its limit m -> t by
                                     differences or forward-mode differentiation

T = A' x_t + B' F + A v* + B dF/dt   written out, with A' and B' derivatives by t
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ucgm.objective.passes import forward_mode
from ucgm.transport import Transport, expand

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
    prediction: Tensor | None = None,
) -> Tensor:
    """T = dX/dt along the field by central differences with ``step`` to each side.

    x_t, F* (B, ...), t, s (B,); F is not needed.  The points stay in [s, 1]: at the borders one
    side is shorter.
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
    """T = A' x_t + B' F + A v* + B dF/dt, with dF/dt alone by central differences (TiM).

    x_t, F, F* (B, ...), t, s (B,).  The points t + step and t - step may leave [s, 1] (TiM, arXiv
    2509.04394, published code).
    """
    ends = [evaluate(transport.jump(x_t, field, t, time), time) for time in (t + step, t - step)]
    rates = torch.func.jvp(lambda t: transport.map(t, s), (t,), (torch.ones_like(t),))[1]
    b = expand(transport.map(t, s)[1], x_t)
    first = first_part(transport, x_t, prediction, t, s, field) * expand(transport.rate(t), x_t)
    return first + expand(rates[0], x_t) * x_t + b * (ends[0] - ends[1]) / (2.0 * step)


def jvp_tangent(
    transport: Transport,
    evaluate: Evaluate,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    field: Tensor,
    step: float = 0.0,
    prediction: Tensor | None = None,
) -> Tensor:
    """T = dX/dt along the field by forward-mode differentiation of (x, t) -> X(x; t->s).

    x_t, F* (B, ...), t, s (B,); neither a step nor F is needed.
    """

    def flow_map(x: Tensor, time: Tensor) -> Tensor:
        return transport.jump(x, evaluate(x, time), time, s)

    direction = (transport.velocity(x_t, field, t), torch.ones_like(t))
    with forward_mode():
        return torch.func.jvp(flow_map, (x_t, t), direction)[1]


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


LIMITS: dict[str, Callable[..., Tensor]] = {
    "central": difference_tangent,
    "central_prediction": prediction_tangent,
    "jvp": jvp_tangent,
}
"""The limit m -> t, by the setting ``tangent``."""
