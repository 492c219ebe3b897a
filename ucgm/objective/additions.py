"""What some methods add to the residual, or put in its place.

transported        minibatch optimal transport (arXiv 2302.00482, section 3.2)
own_samples        TwinFlow's rows of the network's own samples, at negative time
matching_term      TwinFlow's term: fake minus real velocity as the gradient of the one-step sample
                   (arXiv 2512.05150)
second_head_term   what the second head learns (improved MeanFlow; internal guidance)
flow_anchor_term   flow matching at s = t beside a flow map (FACM, arXiv 2507.03738; TVM)
terminal_velocity  the flow map matched at its destination (TVM, arXiv 2511.19797)
"""

from dataclasses import replace

import torch
from torch import Tensor

from ucgm.objective.destinations import TwinFlowSplit
from ucgm.objective.draw import Draw
from ucgm.objective.fields import field_at
from ucgm.objective.losses import cosine_loss, mean_flat, over_scale, per_sample_loss, power_loss
from ucgm.objective.passes import Passes, forward_mode, place, stand_in, take
from ucgm.objective.settings import ObjectiveSettings
from ucgm.transport import expand


def transported(x: Tensor, z: Tensor) -> Tensor:
    """``z`` (B, ...) permuted so that the sum of |x - z|^2 is least; labels stay with ``x``.

    The assignment is made on the host and within the given rows, so it depends on how the global
    batch is cut.
    """
    from scipy.optimize import linear_sum_assignment

    # In float64, which GPUs have few units for.
    one, two = (v.flatten(1).cpu().double() for v in (x, z))
    cost = torch.cdist(one, two).square()
    _, order = linear_sum_assignment(cost.numpy())
    return z[torch.as_tensor(order, device=z.device)]


def own_samples(objective: ObjectiveSettings, passes: Passes, draw: Draw) -> Draw:
    """The draw with the data of its own-sample rows replaced by one-step samples."""
    assert draw.twin is not None
    rows = draw.twin.part == 3
    if not passes.anywhere(rows):
        return draw
    index = stand_in(rows).nonzero().flatten().to(draw.x.device, non_blocking=True)
    z, y = draw.twin.source[index], take(draw.y, index)
    one, zero = torch.ones_like(draw.t[index]), torch.zeros_like(draw.t[index])
    with torch.no_grad():
        prediction = passes.call("online", z, one, y, zero, index, signed=False)
        samples = objective.transport.jump(z, prediction, one, zero)
    return replace(draw, x=place(draw.x, rows, index, samples))


def matching_term(
    objective: ObjectiveSettings, passes: Passes, draw: Draw, x_t: Tensor, prediction: Tensor
) -> Tensor:
    """Mean over the one-step rows of |F - stopgrad(F - clamp(F_fake - F_real))|^2, powered.

    The sum is divided by the expected number of such rows, a quarter, and not by the number drawn:
    so the mean of several processes, which draw different numbers, is that of one.  x_t and the
    prediction F are (B, ...); the result is a scalar.
    """
    transport = objective.transport
    assert draw.twin is not None and draw.s is not None
    rows = draw.twin.part == 0
    if not passes.anywhere(rows):
        return prediction.sum() * 0.0
    index = stand_in(rows).nonzero().flatten().to(x_t.device, non_blocking=True)
    one_step, y, time = prediction[index], take(draw.y, index), draw.twin.time[index]
    with torch.no_grad():
        sample = transport.jump(x_t[index], one_step, draw.t[index], draw.s[index])
        noised = transport.mix(sample, draw.twin.noise[index], time)
        fake, real = (
            passes.call("online", noised, sign * time, y, sign * time, index, signed=False)
            for sign in (-1.0, 1.0)
        )
        target = one_step - (fake - real).clamp(-1.0, 1.0)
    if not bool(rows.any()):
        return prediction.sum() * 0.0
    powered = power_loss(one_step - target, objective.loss_power, objective.loss_epsilon, False)
    return powered.sum() / (TwinFlowSplit.share * len(x_t))


def second_head_term(
    objective: ObjectiveSettings, second: Tensor, known: Tensor, field: Tensor, f_target: Tensor
) -> Tensor:
    """Scalar loss of what a second head says, ``second`` (B, ...), with its weight.

    A velocity head learns the field, an exit head the network's own F (``known``) or, like it, the
    target, all (B, ...).
    """
    learned = f_target if objective.exit_target == "field" else known
    learned = field if objective.velocity_head else learned
    weight = objective.velocity_head or objective.exit_head
    return weight * per_sample_loss(objective, second, learned).mean()


def flow_anchor_term(
    objective: ObjectiveSettings,
    passes: Passes,
    draw: Draw,
    at_t: Tensor | None,
    field: Tensor,
    progress: float,
) -> Tensor:
    """Mean of |F(x_t, t, t) - F*|^2, with the cosine where the settings say so: a scalar.

    Args:
        objective: the settings; with ``flow_anchor_law`` the term has times of its own, and the
            passes at (t, t), F and F*, are made here.
        passes: makes the passes; this one goes through the wrapper of the network.
        draw: the complete draw.
        at_t: (B, ...) F at (t, t), where the term shares the times of the rows.
        field: (B, ...) F* there.
        progress: share of the run that is done.
    """
    if at_t is None:
        host, t = draw.host, draw.flow_time
        assert host is not None and host.flow_time is not None and t is not None
        own = host._replace(t=host.flow_time, s=host.flow_time, m=host.flow_time)
        x_t = objective.transport.mix(draw.x, draw.z, t)
        at_t = prediction = passes.call("online", x_t, t, draw.y, t, wrapped=True)
        with torch.no_grad():
            here = replace(draw, t=t, s=t, m=t, host=own)
            field = field_at(objective, passes, here, x_t, prediction.detach(), None, progress)
    assert at_t is not None
    rows = mean_flat((at_t - field).square())
    if objective.flow_anchor_cosine:
        rows = rows + cosine_loss(at_t, field, objective.cosine_floor)
    return over_scale(objective, rows, draw).mean()


def terminal_velocity(
    objective: ObjectiveSettings, passes: Passes, draw: Draw, x_t: Tensor
) -> tuple[Tensor, Tensor]:
    """Terminal velocity: the flow map is matched at its destination (TVM, arXiv 2511.19797).

    The residual of :mod:`ucgm.objective.residual` moves the start of a jump X(x_t; t->s).  This one
    moves its end: along the flow, the end of a jump has the velocity of the point it has reached,

        dX/ds (x_t; t->s) = v(X, s),    v = alpha' x* + sigma' z*  of  F^-(X^-, s, s)

    Both sides are affine in an F at (X, s), so they are compared there, and every loss applies:

        F' = (v(X; F = 0) - dX/ds) / b(s)       dX/ds = A' x_t + B' F + B dF/ds, with gradient
        F' = F at s = t, where the field is the target: flow matching, no derivative

    With a ``flow_anchor`` no row has s = t, and flow matching is a term of its own.

    The gradient goes through dF/ds, a forward derivative that is then differentiated backward.

    Args:
        objective: the settings; F^- is of their ``residual_network``.
        passes: makes the passes; the rows with s = t go through the wrapper of the network.
        draw: the complete draw.
        x_t: (B, ...) states.

    Returns:
        F' and F^-(X^-, s, s), each (B, ...); on the rows with s = t they are F and 0.
    """
    host, transport, nothing = draw.host, objective.transport, torch.zeros_like(x_t)
    assert host is not None and draw.s is not None
    jumping = host.s < host.t
    prediction = nothing
    if not objective.flow_anchor:
        index = passes.index(~jumping)
        x, t, y = (take(v, index) for v in (x_t, draw.t, draw.y))
        at_same_time = passes.call("online", x, t, y, t, index, wrapped=True)
        prediction = place(nothing, ~jumping, index, at_same_time)
    if not bool(jumping.any()):
        return prediction, nothing
    index = passes.index(jumping)
    x, t, s, y = (take(v, index) for v in (x_t, draw.t, draw.s, draw.y))
    # At s = 0 a jump ends at the data (Transport.map) and not on the path: no derivative there.
    s = s.clamp(min=1e-12)

    def jump(later: Tensor) -> Tensor:
        return transport.jump(x, passes.call("online", x, t, y, later, index), t, later)

    # A derivative, and the difference of two velocities, need float32.
    with torch.autocast(x.device.type, enabled=False):
        with forward_mode():
            end, rate = torch.func.jvp(jump, (s,), (torch.ones_like(s),))[:2]
        velocity_without_f = transport.velocity(end, torch.zeros_like(end), s)
        at_end = (velocity_without_f - rate) / expand(transport.rate(s), x)
        with torch.no_grad():
            wanted = passes.call(objective.residual_network, end.detach(), s, y, s, index)
    if index is None:  # every pass was made for all rows
        rows = expand(jumping.to(x_t.device, non_blocking=True), x_t)
        return torch.where(rows, at_end, prediction), wanted
    return place(prediction, jumping, index, at_end), place(nothing, jumping, index, wanted)
