"""The field F*: which direction a training target calls the true one.

One affine rule covers data, guidance in training, distillation and teachers:

    F* = a_d F_data + a_c F_cond + a_u F_uncond,    a_d + a_c + a_u = 1

with coefficients that depend on the row's region: t inside the enhancement interval, t outside
it, or label dropped.  x_t is invariant under it: every (x*, z*) of F* mixes to the same x_t.  A
source is evaluated on exactly the rows where its coefficient is not 0.

    rule          cond, uncond      inside                    outside        dropped
    data                            (1, 0, 0)                 (1, 0, 0)      (1, 0, 0)
    enhanced      online, target    (1, w, -w)                (1/2, 1/2, 0)  (1/2, 0, 1/2)
    guided        target, target    (1, w, -w)                (1, 0, 0)      (1, 0, 0)
    teacher       teacher           (1 - w, w, 0)             (1/2, 1/2, 0)  (1, 0, 0)
    teacher_cfg   teacher, teacher  (1, w, -w)                (1/2, 1/2, 0)  (1, 0, 0)
    distillation  teacher, teacher  (0, w, 1 - w)             (0, 1, 0)      (0, 1, 0)
    mixed         online, online    (w, k, 1 - w - k)         (1, 0, 0)      (1, 0, 0)
    scaled        online, online    (1, 1 - 1/w, -(1 - 1/w))  (1, 0, 0)      (1, 0, 0)
    jump          target at (t, m)  the network's own jump, where s < t      data

w is ``enhancement_ratio`` (zeta of UCGM, omega of MeanFlow) and k ``guidance_mix`` (kappa).

    rule          method                                      guidance scale of the fixed point
    enhanced      UCGM multi-step (arXiv 2505.07447, sec 3.2) 1 / (1 - w)
    guided        RCGM, TwinFlow                              1 / (1 - w) for its own EMA
    teacher       UCGM few-step, a teacher that is guided     1 + w k0, k0 that of the teacher
    teacher_cfg   few-step tuning of an unguided model        1 + w
    distillation  consistency distillation, any teacher       w
    mixed         MeanFlow (arXiv 2505.13447, equation 21)    w / (1 - k)
    scaled        improved MeanFlow, w an input of the network  w

Several teachers are averaged.  w = 0 is plain data under the rules of UCGM.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ucgm.objective.draw import Draw, HostTimes
from ucgm.objective.passes import Passes
from ucgm.objective.settings import ObjectiveSettings
from ucgm.transport import expand

Source = Literal["online", "target", "teacher"]
Affine = tuple[float, float, float]
DATA: Affine = (1.0, 0.0, 0.0)


@dataclass(frozen=True)
class FieldRule:
    """Coefficients (a_d, a_c, a_u) by region, and the networks that give the two predictions."""

    conditional: Source
    unconditional: Source
    inside: Callable[[Tensor, float], tuple[Any, Any, Any]]
    outside: Affine = DATA
    dropped: Affine = DATA


FIELD_RULES: dict[str, FieldRule] = {
    "enhanced": FieldRule(
        "online", "target", lambda w, k: (1.0, w, -w), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5)
    ),
    "guided": FieldRule("target", "target", lambda w, k: (1.0, w, -w)),
    "teacher": FieldRule("teacher", "teacher", lambda w, k: (1.0 - w, w, 0.0), (0.5, 0.5, 0.0)),
    "teacher_cfg": FieldRule("teacher", "teacher", lambda w, k: (1.0, w, -w), (0.5, 0.5, 0.0)),
    "distillation": FieldRule(
        "teacher", "teacher", lambda w, k: (0.0, w, 1.0 - w), (0.0, 1.0, 0.0), (0.0, 1.0, 0.0)
    ),
    "mixed": FieldRule("online", "online", lambda w, k: (w, k, 1.0 - w - k)),
    "scaled": FieldRule("online", "online", lambda w, k: (1.0, 1.0 - 1.0 / w, -(1.0 - 1.0 / w))),
}
# Under these rules a ratio of 0 switches enhancement off altogether.
OFF_AT_ZERO = ("enhanced", "guided", "teacher", "teacher_cfg")


def sources_of(objective: ObjectiveSettings) -> set[str]:
    """Networks besides the trained one that the field of ``objective`` evaluates."""
    name, w = objective.field, objective.enhancement_ratio
    if name == "data" or (w == 0.0 and name in OFF_AT_ZERO):
        return set()
    if name == "jump":
        return {"target"}
    rule = FIELD_RULES[name]
    return {rule.conditional, rule.unconditional} - {"online"}


def coefficients(objective: ObjectiveSettings, host: HostTimes) -> Tensor:
    """(3, B) coefficients of (data, conditional, unconditional) on the CPU."""
    rule = FIELD_RULES[objective.field]
    w = torch.full_like(host.t, objective.enhancement_ratio)
    if host.guidance is not None:
        w = host.guidance
    inside = torch.stack(
        [torch.as_tensor(a).expand_as(host.t) for a in rule.inside(w, objective.guidance_mix)]
    )
    outside, dropped = (
        torch.tensor(region, dtype=host.t.dtype)[:, None] for region in (rule.outside, rule.dropped)
    )
    low, high = objective.enhancement_interval
    table = torch.where((host.t > low) & (host.t < high), inside, outside)
    return torch.where(host.dropped, dropped, table)


def evaluate(
    passes: Passes, networks: Any, rows: Tensor, x: Tensor, y: Tensor | None, s: Tensor
) -> Tensor:
    """The prediction (B, ...) of a network, or the mean of several, on ``rows`` (B,) of x (B,
    ...).
    """
    several = networks if isinstance(networks, Sequence) else [networks]
    t = passes.draw.t
    results = [passes.on_rows(network, rows, x, t, y, s) for network in several]
    return results[0] if len(results) == 1 else torch.stack(results).mean(0)


def field_at(
    objective: ObjectiveSettings,
    passes: Passes,
    x_t: Tensor,
    data: Tensor,
    prediction: Tensor,
    networks: dict[str, Any],
) -> Tensor:
    """F* (B, ...) at (x_t, t).

    Args:
        objective: names the rule and its ratio.
        passes: makes the passes, each on the rows that need it.
        x_t: (B, ...) states.
        data: (B, ...) target of the data.
        prediction: (B, ...) F of the gradient pass, detached; it serves where it is the source.
        networks: ``online``, ``target`` and ``teacher`` (one or a list).
    """
    draw = passes.draw
    host = draw.host
    assert host is not None and draw.s is not None and draw.m is not None
    if objective.field == "jump":
        rows = host.s < host.t
        jump = evaluate(passes, networks["target"], rows, x_t, draw.y, draw.m)
        jumps = rows.to(x_t.device, non_blocking=True)
        return torch.where(expand(jumps, x_t), jump, data)
    if objective.field == "data" or (
        objective.enhancement_ratio == 0.0 and objective.field in OFF_AT_ZERO
    ):
        return data
    rule, table = FIELD_RULES[objective.field], coefficients(objective, host)
    own = host.s < host.t if objective.terminal else torch.zeros_like(host.dropped)
    if draw.twin is not None:
        own = draw.twin.part == 3
    # Under every rule TwinFlow's own samples are their own data, and a terminal velocity is learned
    # from the network: these rows need no guidance.
    table[:, own] = torch.tensor(DATA, dtype=table.dtype)[:, None]
    on_device = table.to(x_t.device, x_t.dtype, non_blocking=True)
    a_data, a_cond, a_uncond = (expand(a, x_t) for a in on_device)
    field = a_data * data
    if passes.anywhere(table[1] != 0):
        network = networks[rule.conditional]
        online = prediction if rule.conditional == "online" else None
        field = field + a_cond * _conditional(
            objective, passes, network, table[1] != 0, x_t, online
        )
    if passes.anywhere(table[2] != 0):
        null = _null(draw)
        rows = table[2] != 0
        field = field + a_uncond * evaluate(
            passes, networks[rule.unconditional], rows, x_t, null, draw.t
        )
    return field


def _conditional(
    objective: ObjectiveSettings,
    passes: Passes,
    network: Any,
    rows: Tensor,
    x_t: Tensor,
    online: Tensor | None,
) -> Tensor:
    """The prediction with labels at s = t on ``rows`` (a CPU mask), 0 elsewhere.

    ``online`` is F of the gradient pass where that network is the source.
    """
    draw, host = passes.draw, passes.draw.host
    assert host is not None
    known = torch.zeros_like(x_t)
    if online is not None:
        # A one-time network, and a two-time one at s = t, has said it already.
        fresh = rows & (host.s < host.t) & objective.two_time
        said = (rows & ~fresh).to(x_t.device, non_blocking=True)
        known = torch.where(expand(said, x_t), online, known)
        if passes.velocity is not None:
            along = fresh.to(x_t.device, non_blocking=True)
            known = torch.where(expand(along, x_t), passes.velocity, known)
            fresh = torch.zeros_like(fresh)
        rows = fresh
    return known + evaluate(passes, network, rows, x_t, draw.y, draw.t)


def _null(draw: Draw) -> Tensor | None:
    """Labels of the unconditional pass."""
    if draw.y is None or draw.null_label is None:
        return draw.y
    return torch.full_like(draw.y, draw.null_label)
