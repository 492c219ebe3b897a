"""The field F* at the states of a step, by the rules of :mod:`ucgm.objective.field_rules`.

Every pass is made on exactly the rows where its coefficient is not 0.
"""

import torch
from torch import Tensor

from ucgm.objective.draw import Draw, HostTimes
from ucgm.objective.field_rules import weighted_parts
from ucgm.objective.passes import Heads, Passes, place
from ucgm.objective.settings import ObjectiveSettings
from ucgm.transport import expand


def guided_jump(
    objective: ObjectiveSettings, passes: Passes, draw: Draw, x: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """Half a jump from t to s by the target network, on the rows with m > s, 0 on the others.

    The halves of the grid's smallest jumps are guided, larger ones learn it from them (Shortcut,
    arXiv 2410.12557, its code).  x, F (B, ...), t, s (B,).
    """
    host, w, nothing = draw.host, objective.enhancement_ratio, null_labels(draw)
    assert host is not None
    rows = host.m > host.s
    jump = passes.on_rows("target", rows, x, t, draw.y, s)
    if w in (0.0, 1.0) or nothing is None:
        return jump
    rows = rows & (host.t - host.s <= 2.001 * objective.smallest_jump)
    null = passes.on_rows("target", rows, x, t, nothing, s)
    return place(jump, rows, None, null + w * (jump - null))


def null_labels(draw: Draw) -> Tensor | None:
    """(B,) null labels, or None without classes."""
    if draw.y is None or draw.null_label is None:
        return None
    return torch.full_like(draw.y, draw.null_label)


def field_at(
    objective: ObjectiveSettings,
    passes: Passes,
    draw: Draw,
    x_t: Tensor,
    prediction: Tensor,
    velocity: Tensor | None,
    progress: float,
) -> Tensor:
    """F* (B, ...) at (x_t, t); every pass is made on the rows that need it.

    Args:
        objective: names the rule and its ratio.
        passes: makes the passes.
        draw: the complete draw.
        x_t: (B, ...) states.
        prediction: (B, ...) F of the gradient pass where s = t, detached; it serves where it is the
            source.
        velocity: (B, ...) F of the trained network at s = t on the rows with m > s, if it is known.
        progress: share of the run that is done, for weights that move.

    Raises:
        ValueError: the rule needs a teacher, and there is none, or not so many.
    """
    host, t = draw.host, draw.t
    assert host is not None and draw.s is not None and draw.m is not None
    data = objective.transport.target(draw.x, draw.z, t)
    if objective.field == "jump":
        jump = guided_jump(objective, passes, draw, x_t, t, draw.m)
        return place(data, host.m > host.s, None, jump)
    null, scale = null_labels(draw), scale_at(draw)
    parts, table = weighted_parts(objective, host, progress, null is not None)
    if not parts:
        return data
    named = [1 + (part.teacher or 0) for part in parts if part.network == "teacher"]
    passes.refuse_fewer_teachers(max(named, default=0), objective.field)
    # Under every rule TwinFlow's own samples are their own data, and a terminal velocity is learned
    # from the network: these rows need no guidance.
    own = draw.twin.part == 3 if draw.twin is not None else (host.s < host.t) & objective.terminal
    table[0, own], table[1:, own] = 1.0, 0.0
    on_device = table.to(x_t.device, x_t.dtype, non_blocking=True)
    a_data, *weights = (expand(a, x_t) for a in on_device)
    field = a_data * data
    one = None if scale is None else torch.ones_like(scale)
    for part, a, rows in zip(parts, weights, table[1:] != 0, strict=True):
        missing: Tensor = rows
        known: Tensor | float = 0.0
        if part.network == "online" and part.view == "label":
            later, known = known_already(objective, host, prediction, velocity)
            missing = rows & later
        if not passes.anywhere(rows):
            continue
        y, strength = (null, one) if part.view == "null" else (draw.y, scale)
        own_head = objective.velocity_head and part.network != "teacher"
        heads: Heads = "exit" if part.view == "exit" else "velocity" if own_head else "map"
        inputs = (x_t, t, draw.y if y is None else y, t, strength, heads, part.teacher)
        field = field + a * (known + passes.on_rows(part.network, missing, *inputs))
    return field


def scale_at(draw: Draw) -> Tensor | None:
    """(B,) guidance scales of the field, 1 outside their intervals; None: they are no input."""
    if draw.host is None or draw.host.guidance is None:
        return None
    return draw.host.guidance.to(draw.t, non_blocking=True)


def own_velocity(objective: ObjectiveSettings, passes: Passes, draw: Draw, x_t: Tensor) -> Tensor:
    """F (B, ...) of the trained network at s = t, on the rows with m > s; x_t (B, ...)."""
    assert draw.host is not None
    heads = "velocity" if objective.velocity_head else "map"
    inputs = (x_t, draw.t, draw.y, draw.t, scale_at(draw), heads)
    return passes.on_rows("online", draw.host.m > draw.host.s, *inputs)


def known_already(
    objective: ObjectiveSettings, host: HostTimes, prediction: Tensor, velocity: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rows that still need a pass for the network's F at s = t, a CPU mask (B,), and F elsewhere.

    F is (B, ...), 0 on the rows of the mask.  A network of one time, and one of two at s = t, has
    predicted it; ``velocity`` is it elsewhere.
    """
    later = (host.s < host.t) & objective.two_time
    elsewhere = torch.zeros_like(prediction) if velocity is None else velocity
    return later & (velocity is None), place(elsewhere, ~later, None, prediction)
