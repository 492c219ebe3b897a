"""The one residual of UCGM-T and the target it implies.

With s <= m <= t, a field F* at (x_t, t) and the anchor point x_m = A(t, m) x_t + B(t, m) F*, the
flow map X = A x + B F of the network is asked to be consistent along the field:

    T = [X(x_t; t->s) - X^-(x_m; m->s)] / (t - m)       X^- without gradient
    G = T (t - m) / B(t, m),    in the limit m -> t:    G = T / b(t)

    m = s              G = F - F*: diffusion and flow matching, no second pass
    m = s + lambda (t - s)     UCGM's consistency ratio (arXiv 2505.07447, section 3.1)
    m -> t             T = dX/dt along the field: continuous-time consistency, MeanFlow

The regression target is F_tgt = F - c phi(G), without gradient.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ucgm.transport import HALF_PI, Transport, expand

Evaluate = Callable[[Tensor, Tensor], Tensor]
TangentMethod = Literal["central", "jvp"]
StepRule = Literal["one", "ucgm"]


def finite_tangent(
    transport: Transport,
    prediction: Tensor,
    evaluate: Evaluate,
    x_t: Tensor,
    times: tuple[Tensor, Tensor, Tensor],
    field: Tensor,
) -> Tensor:
    """T for an anchor m < t; ``times`` = (t, s, m), ``evaluate(x, t)`` = F^- of the network."""
    t, s, m = times
    x_m = transport.jump(x_t, field, t, m)
    late = transport.jump(x_t, prediction, t, s)
    early = transport.jump(x_m, evaluate(x_m, m), m, s)
    return (late - early) / expand(t - m, x_t)


def central_tangent(
    transport: Transport,
    evaluate: Evaluate,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    field: Tensor,
    step: float,
) -> Tensor:
    """dX/dt along the field by a central difference of half-width ``step``.

    The two points stay in [s, 1], so the difference is one-sided at the borders.
    """
    late, early = (t + step).clamp(max=1.0), torch.maximum(t - step, s)
    ends = []
    for time in (late, early):
        x = transport.jump(x_t, field, t, time)
        ends.append(transport.jump(x, evaluate(x, time), time, s))
    return (ends[0] - ends[1]) / expand(late - early, x_t)


def jvp_tangent(
    transport: Transport, evaluate: Evaluate, x_t: Tensor, t: Tensor, s: Tensor, field: Tensor
) -> Tensor:
    """dX/dt along the field by forward-mode differentiation of (x, t) -> X(x; t->s)."""

    def flow_map(x: Tensor, time: Tensor) -> Tensor:
        return transport.jump(x, evaluate(x, time), time, s)

    direction = (transport.velocity(x_t, field, t), torch.ones_like(t))
    # Fused attention kernels have no forward-mode derivative.
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(flow_map, (x_t, t), direction)[1]


def stepped_target(
    transport: Transport,
    prediction: Tensor,
    tangent: Tensor,
    t: Tensor,
    m: Tensor | None,
    rule: StepRule,
    clamp: float | None,
) -> Tensor:
    """F_tgt = F - c phi(G) for a tangent T; ``m`` is None in the limit m -> t.

    ``one``: c = 1 on G.  ``ucgm``: (sigma / D) (4 / sin(pi t / 2)) on b G = T (arXiv 2505.07447,
    equation 8 and the published code).  phi is an elementwise clamp to [-clamp, clamp], or the
    identity.
    """
    if rule == "ucgm":
        c = transport.coefficients(t)
        # At t = 0 sigma is 0 as well, and the target is F itself.
        scale = 4.0 * c.sigma / c.determinant / torch.sin(HALF_PI * t).clamp(min=1e-6)
        residual = tangent
    else:
        rate = transport.rate(t) if m is None else transport.map(t, m)[1] / (t - m)
        scale = torch.ones_like(t)
        residual = tangent / expand(rate, tangent)
    if clamp is not None:
        residual = residual.clamp(-clamp, clamp)
    return prediction - expand(scale, prediction) * residual
