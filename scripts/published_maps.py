"""What the public code of each flow map computes: MeanFlow and what followed it.

The conventions are those of ``published.py``: t = 0 is data, s <= t, F = z - x, no ``ucgm`` inside.
Labels of a batch are whole here; guidance is computed with them before they are dropped, where the
public code does so.
"""

import math

import torch
from published import (
    Batch,
    Net,
    Published,
    adaptive,
    cosine,
    derivative,
    mean_square,
    sum_square,
    wide,
)
from torch import Tensor
from torch.nn.functional import cosine_similarity


def inside(t: Tensor, interval: tuple[float, float]) -> Tensor:
    """(B, 1, 1, 1) whether times (B,) are in the closed interval."""
    return wide((t >= interval[0]) & (t <= interval[1]))


def total(net: Net, b: Batch, along: Tensor, *more: Tensor) -> Tensor:
    """(B, ...) dF/dt of ``net`` at (x_t, t, s) while x_t moves with the velocity ``along``."""
    labels = b.labels

    def call(x: Tensor, t: Tensor) -> Tensor:
        return net(x, t, labels, b.s, *more)

    return derivative(call, (b.mixed, b.t), (along, torch.ones_like(b.t)))


def meanflow(
    net: Net,
    b: Batch,
    omega: float,
    kappa: float,
    interval: tuple[float, float] = (0.0, 1.0),
    power: float = 1.0,
    epsilon: float = 0.01,
) -> Published:
    """MeanFlow (Gsunshine/meanflow, meanflow.py; py-meanflow, models/meanflow.py: no labels)."""
    v, xt, t = b.velocity, b.mixed, b.t
    with torch.no_grad():
        guided = omega * v + (1 - omega - kappa) * net(xt, t, b.nulls, t)
        if kappa:
            guided = guided + kappa * net(xt, t, b.y, t)
        field = torch.where(inside(t, interval) & ~wide(b.dropped), guided, v)
    change = total(net, b, field)
    f = net(xt, t, b.labels, b.s)
    target = field - wide(t - b.s) * change
    return Published(target, adaptive(sum_square(f - target), power, epsilon))


def imf(net: Net, b: Batch, velocity_head: bool = True, epsilon: float = 0.01) -> Published:
    """Improved MeanFlow (Lyy-iiis/imeanflow, imf.py).

    ``guidance`` of the batch is (B, 3): scale, and the ends of its interval of t, 0 and 1 on rows
    with s = t.  The velocities are those of the second head at s = t and every time; without a head
    those of the map itself, and the head's loss is absent.
    """
    xt, t, v = b.mixed, b.t, b.velocity
    scale, low, high = b.guidance.T
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    heads = "velocity" if velocity_head else "map"

    def velocity(y: Tensor, w: Tensor) -> Tensor:
        return net(xt, t, y, t, torch.stack((w, zero, one), 1), heads=heads)

    with torch.no_grad():
        w = torch.where((t >= low) & (t <= high), scale, 1.0)
        cond = velocity(b.y, w)
        guided = v + wide(1 - 1 / w) * (cond - velocity(b.nulls, one))
        field = torch.where(wide(b.dropped), v, guided)
    change = total(net, b, cond, b.guidance)
    f = net(xt, t, b.labels, b.s, b.guidance)
    target = field - wide(t - b.s) * change
    rows = adaptive(sum_square(f - target), 1.0, epsilon)
    if velocity_head:
        said = net(xt, t, b.labels, b.s, b.guidance, heads="velocity")
        rows = rows + adaptive(sum_square(said - field), 1.0, epsilon)
    return Published(target, rows)


def alpha_of(progress: float, start: float, end: float) -> float:
    """AlphaFlow's ratio: a sigmoid of steepness 25, 1 before ``start`` and 0 after ``end``.

    Shares of the run; within 0.005 of 0 and 1 it is 0 and 1.
    """
    if progress < start or progress > end:
        return float(progress < start)
    alpha = 1 / (1 + math.exp(25 * (progress - (start + end) / 2) / (end - start)))
    return float(alpha > 0.5) if min(alpha, 1 - alpha) < 0.005 else alpha


def alpha_flow(
    net: Net,
    b: Batch,
    alpha: float,
    omega: float,
    kappa: float,
    interval: tuple[float, float],
    clip: float | None = 4.0,
    epsilon: float = 1e-3,
) -> Published:
    """AlphaFlow (snap-research/alphaflow, loss.py).

    Labels are dropped inside the open guidance interval only, and dropped rows there keep the
    guided velocity, with the null label for the condition.
    """
    xt, t, s, v = b.mixed, b.t, b.s, b.velocity
    guided_rows = (t > interval[0]) & (t < interval[1])
    b = b._replace(dropped=b.dropped & guided_rows)
    y = b.labels
    with torch.no_grad():
        guided = omega * v + kappa * net(xt, t, y, t)
        guided = guided + (1 - omega - kappa) * net(xt, t, b.nulls, t)
        field = torch.where(wide(guided_rows), guided, v)
        step = alpha * (t - s)
        finite = step > 0
        after = net(xt - wide(step) * field, t - step, y, s)
        gap = wide(torch.where(finite, t - s, 1.0))
        jump = (wide(step) * field + wide(t - step - s) * after) / gap
        if clip is not None:
            jump = jump.clamp(-clip, clip)
        limit = field - wide(t - s) * total(net, b, field)
        target = torch.where(wide(finite), jump, limit)
    q = mean_square(net(xt, t, y, s) - target)
    weight = torch.where(finite, alpha * torch.ones_like(t), 1.0)
    return Published(target, weight * adaptive(q, 1.0, epsilon))


def terminal_velocity(
    net: Net, average: Net, b: Batch, scale: float, scaled_output: bool = False
) -> Published:
    """Terminal velocity matching (lumalabs/tvm, training/wrapper.py).

    Every row has a terminal term at (t, s) and a flow-matching term at ``b.time``, both over the
    square of its guidance scale, which is 1 on dropped rows.  The gradient goes through dF/ds.
    """
    w = torch.where(b.dropped, 1.0, scale).to(b.t)
    factor = wide(w if scaled_output else torch.ones_like(w))
    y, xt, s = b.labels, b.mixed, b.s

    def said(time: Tensor) -> Tensor:
        return net(xt, b.t, y, time, w)

    f, change = torch.func.jvp(said, (s,), (torch.ones_like(s),))
    end = xt + wide(s - b.t) * factor * f
    speed = factor * (f + wide(s - b.t) * change)
    with torch.no_grad():
        wanted = factor * average(end, s, y, s, w)
    terminal = mean_square((speed - wanted) / wide(w))
    return Published(wanted, terminal + velocity_rows(net, average, b, w, factor))


def velocity_rows(net: Net, average: Net, b: Batch, w: Tensor, factor: Tensor) -> Tensor:
    """(B,) TVM's flow-matching term at ``b.time``, guided by the average, w (B,)."""
    at, ones = b.time, torch.ones_like(w)
    b = b._replace(t=at)
    with torch.no_grad():
        null = average(b.mixed, at, b.nulls, at, ones)
        guided = wide(w) * b.velocity + wide(1 - w) * null
    return mean_square((factor * net(b.mixed, at, b.labels, at, w) - guided) / wide(w))


def shortcut(
    net: Net,
    average: Net,
    b: Batch,
    smallest: float = 1 / 128,
    scale: float = 1.0,
    clip: float | None = 4.0,
) -> Published:
    """Shortcut models (kvfrans/shortcut-models, targets_shortcut.py).

    A row with t - s above ``smallest`` is a jump whose target is two halves by the average, guided
    where the halves are the smallest; the others learn the velocity.
    """
    xt, t, s = b.mixed, b.t, b.s
    middle, jumps = (t + s) / 2, wide(t - s > smallest)
    guided = wide(t - s <= 2 * smallest)

    def half(state: Tensor, start: Tensor, end: Tensor) -> Tensor:
        cond, null = (average(state, start, y, end) for y in (b.labels, b.nulls))
        return torch.where(guided, null + scale * (cond - null), cond)

    limit = math.inf if clip is None else clip
    with torch.no_grad():
        first = half(xt, t, middle)
        state = (xt - wide(t - middle) * first).clamp(-limit, limit)
        both = (first + half(state, middle, s)) / 2
        target = torch.where(jumps, both.clamp(-limit, limit), b.velocity)
    return Published(target, mean_square(net(xt, t, b.labels, s) - target))


def rcgm_target(
    average: Net, b: Batch, y: Tensor, f: Tensor, field: Tensor, order: int, step: float = 0.01
) -> Tensor:
    """(B, ...) RCGM's target: a step along the field, then ``order`` steps of the average to s."""
    t, s = b.t, b.s
    middle = torch.maximum(t - step, s)
    state, way = b.mixed - field * step, torch.zeros_like(f)
    for i in range(order):
        now, later = (middle + (s - middle) * (k / order) for k in (i, i + 1))
        move = wide(now - later) * average(state, now, y, later)
        state, way = state - move, way + move
    near = t < s + step
    gap = torch.where(near, t - s, 1.0)
    residual = wide(torch.where(near, 1.0, (t - s) / step)) * f
    residual = residual - way / wide(torch.where(near, gap, step)) - field
    return f - residual.clamp(-1, 1)


def rcgm(net: Net, average: Net, b: Batch, ratio: float, order: int = 2) -> Published:
    """RCGM (inclusionAI/TwinFlow, tutorials/mnist/methodes.py)."""
    xt, t, y = b.mixed, b.t, b.labels
    f = net(xt, t, y, b.s)
    with torch.no_grad():
        guidance = average(xt, t, y, t) - average(xt, t, b.nulls, t)
        field = b.velocity + ratio * guidance * wide(~b.dropped)
        target = rcgm_target(average, b, y, f.detach(), field, order)
    return Published(target, mean_square(f - target))


def barron(error: Tensor, c: float = 1e-3) -> Tensor:
    """(B,) Barron's robust loss at alpha 1, its weight without gradient."""
    q = mean_square(error)
    return q * (q.detach() / (c**2 + 1e-8) + 1) ** -0.5 / c


def twinflow(
    net: Net, average: Net, b: Batch, ratio: float, order: int = 2, matching: float = 0.5
) -> Published:
    """TwinFlow (inclusionAI/TwinFlow, src/methodes/twinflow/twinflow.py).

    ``b.twin`` has the part of each row (0 one step, 1 short, 2 any, 3 own samples at negative time)
    and its noises.  The matching term is the mean over the rows of part 0, a quarter of the batch.
    """
    t, y, own = b.t, b.labels, b.twin.part == 3
    one, sign = torch.ones_like(t), torch.where(own, -1.0, 1.0)
    source = b.twin.source
    with torch.no_grad():
        sample = source - net(source, one, y, torch.zeros_like(t))
        b = b._replace(x=torch.where(wide(own), sample, b.x))
    xt, v = b.mixed, b.velocity
    f = net(xt, sign * t, y, sign * torch.where(own, t, b.s))
    with torch.no_grad():
        guidance = average(xt, t, y, t) - average(xt, t, b.nulls, t)
        guided = wide((t > 0) & (t < 1) & ~own & ~b.dropped)
        field = v + ratio * guidance * guided
        target = rcgm_target(average, b, y, f.detach(), field, order)
        target = torch.where(wide(own), v, target)
    weight = torch.where(own, one, torch.tan((1 - (t - b.s)) * math.pi / 2.5) + 1)
    rows = weight * barron(f - target)
    with torch.no_grad():
        estimate, time = xt - f, b.twin.time  # of part 0, where t = 1 and s = 0
        again = (1 - wide(time)) * estimate + wide(time) * b.twin.noise
        score = net(again, -time, y, -time) - net(again, time, y, time)
        moved = f - score.clamp(-1, 1)
    return Published(target, rows + (b.twin.part == 0) * 4 * matching * barron(f - moved))


def facm(
    net: Net,
    b: Batch,
    scale: float = 1.75,
    interval: tuple[float, float] = (0.0, 0.875),
    teacher: Net | None = None,
) -> Published:
    """FACM (ali-vilab/FACM, losses.py); its time is 1 - t, its velocity -F.

    The second time tells the two tasks apart: s = t flow matching, s = 0 consistency.  Above the
    interval the null label is replaced by the label.
    """
    xt, t, y = b.mixed, b.t, b.labels
    zero, tau = torch.zeros_like(t), 1 - t
    null = torch.where(inside(t, interval).flatten(), b.nulls, y)
    with torch.no_grad():
        if teacher is None:
            cond, uncond = b.velocity, net(xt, t, null, t)
        else:
            cond, uncond = teacher(xt, t, y, t), teacher(xt, t, null, t)
        field = uncond + scale * (cond - uncond)
    flow = net(xt, t, y, t)
    rows = mean_square(flow - field) + cosine(flow, field)
    change = total(net, b._replace(s=zero), field)
    f = net(xt, t, y, zero)
    residual = f.detach() - (field - wide(t) * change)
    target = f.detach() - wide(1 - tau.sqrt()) * residual.clamp(-1, 1)
    consistency = adaptive(mean_square(f - target), 0.5, 1e-3)
    return Published(target, rows + consistency * torch.cos(tau * math.pi / 2))


def soflow(
    net: Net,
    b: Batch,
    progress: float,
    scale: float = 3.0,
    mix: float = 0.25,
    epsilon: float = 0.01,
) -> Published:
    """SoFlow (zlab-princeton/SoFlow, models.py): flow matching at s = t, consistency below.

    The public loss of the consistency rows is -F times a weighted residual: its gradient is half of
    that of the weighted square, which is what these rows say.
    """
    xt, t, s, v = b.mixed, b.t, b.s, b.velocity
    late = ((1 - t) / 0.2).clamp(0, 1 - 1e-6)
    fade = torch.where(t > 0.8, 1 - torch.exp(-0.025 * late / (1 - late)), 1.0)
    anchor = torch.minimum(t + (s - t) * 0.1 * (0.002 / 0.1) ** progress, t - 1e-4)
    with torch.no_grad():
        guided = v + wide(fade) * (scale - 1) * (v - net(xt, t, b.nulls, t))
        guided = mix * guided + (1 - mix) * net(xt, t, b.y, t)
        field = torch.where(wide(b.dropped), v, guided)
    f = net(xt, t, b.labels, s)
    with torch.no_grad():
        state = xt + wide(anchor - t) * field
        end = state + wide(s - anchor) * net(state, anchor, b.labels, s)
        step = (xt + wide(s - t) * f - end) / wide(t - anchor)
        same = t == s
        target = torch.where(wide(same), field, f + step)
    rows = adaptive(mean_square(f - target), 1.0, epsilon)
    return Published(target, torch.where(same, 1.0, 0.5) * rows)


def tim(net: Net, b: Batch, step: float = 0.005) -> Published:
    """Transition models (WZDTHU/TiM, tim/schedulers/transition.py), without guidance."""
    t, s, y, v = b.t, b.s, b.labels, b.velocity
    f = net(b.mixed, t, y, s)
    with torch.no_grad():
        ends = []
        for time in (t + step, t - step):
            state = (1 - wide(time)) * b.x + wide(time) * b.z
            ends.append(net(state, time, y, s))
        target = v - wide(t - s) * (ends[0] - ends[1]) / (2 * step)
    error = mean_square(f - target) + (1 - cosine_similarity(f, target, dim=1)).flatten(1).mean(1)
    weight = (torch.tan(t) - torch.tan(s) + 1) ** -0.5
    return Published(target, weight * adaptive(error, 1.0, 1e-5))


def lsd(net: Net, b: Batch, log_variance: Net) -> Published:
    """Lagrangian self-distillation (nmboffi/flow-maps, py/common/losses.py).

    Flow matching at s = t, else the velocity of the end of the jump, where the trained network
    itself is asked.  The gradient goes through dF/ds; ``log_variance(t, s)`` is (B,).
    """
    xt, t, s, y = b.mixed, b.t, b.s, b.labels

    def said(time: Tensor) -> Tensor:
        return net(xt, t, y, time)

    f, change = torch.func.jvp(said, (s,), (torch.ones_like(s),))
    with torch.no_grad():
        wanted = net(xt + wide(s - t) * f, s, y, s)
        target = torch.where(wide(t == s), b.velocity, wanted)
    u = log_variance(t, s)
    error = sum_square(f + wide(s - t) * change - target)
    return Published(target, error / u.exp() + u)


def decoupled_meanflow(
    net: Net,
    b: Batch,
    log_variance: Net,
    omega: float = 0.6,
    interval: tuple[float, float] = (0.0, 0.7),
) -> Published:
    """The MeanFlow part of Decoupled MeanFlow (kyungmnlee/dmf, loss.py): rows of any s <= t.

    ``log_variance(t, s)`` is (B,).  The public loss pairs each error with every row's log-variance,
    by the shapes of the two; this is the row by row form that its paper gives.
    """
    xt, t, s, v = b.mixed, b.t, b.s, b.velocity
    with torch.no_grad():
        guided = v + omega * (net(xt, t, b.y, t) - net(xt, t, b.nulls, t))
        field = torch.where(inside(t, interval) & ~wide(b.dropped), guided, v)
    target = field - wide(t - s) * total(net, b, field)
    u = log_variance(t, s)
    error = mean_square(net(xt, t, b.labels, s) - target)
    return Published(target, (error / u.exp() + 0.01).log() + u)
