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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ucgm.objective.draw import Draw, HostTimes
from ucgm.objective.passes import Passes, Source, place
from ucgm.objective.settings import ObjectiveSettings
from ucgm.transport import expand

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


def field_at(
    objective: ObjectiveSettings,
    passes: Passes,
    draw: Draw,
    x_t: Tensor,
    prediction: Tensor,
    velocity: Tensor | None,
) -> Tensor:
    """F* (B, ...) at (x_t, t); every pass is made on the rows that need it.

    Args:
        objective: names the rule and its ratio.
        passes: makes the passes.
        draw: the complete draw.
        x_t: (B, ...) states.
        prediction: (B, ...) F of the gradient pass, detached; it serves where it is the source.
        velocity: (B, ...) F of the trained network at s = t on the rows with m > s, if it is known.

    Raises:
        ValueError: the rule needs a teacher, and there is none.
    """
    sources, host, t = sources_of(objective), draw.host, draw.t
    assert host is not None and draw.s is not None and draw.m is not None
    data = objective.transport.target(draw.x, draw.z, t)
    if "teacher" in sources and not passes.networks["teacher"]:
        raise ValueError(
            f"objective.field = {objective.field!r} needs a teacher: start from a trained run"
        )
    if objective.field == "jump":
        rows = host.s < host.t
        jump = passes.on_rows("target", rows, x_t, t, draw.y, draw.m)
        return place(data, rows, None, jump)
    if objective.field not in FIELD_RULES or (not sources and objective.field in OFF_AT_ZERO):
        return data
    rule, table = FIELD_RULES[objective.field], coefficients(objective, host)
    # Under every rule TwinFlow's own samples are their own data, and a terminal velocity is learned
    # from the network: these rows need no guidance.
    own = draw.twin.part == 3 if draw.twin is not None else (host.s < host.t) & objective.terminal
    table[:, own] = torch.tensor(DATA, dtype=table.dtype)[:, None]
    on_device = table.to(x_t.device, x_t.dtype, non_blocking=True)
    a_data, a_cond, a_uncond = (expand(a, x_t) for a in on_device)
    field = a_data * data
    rows = table[1] != 0
    if passes.anywhere(rows):
        known = torch.zeros_like(x_t)
        if rule.conditional == "online":
            # A network of one time, and one of two at s = t, has predicted it already.
            later = rows & (host.s < host.t) & objective.two_time
            known = place(known, rows & ~later, None, prediction)
            rows = later
            if velocity is not None:
                known, rows = place(known, later, None, velocity), torch.zeros_like(later)
        field = field + a_cond * (known + passes.on_rows(rule.conditional, rows, x_t, t, draw.y, t))
    rows = table[2] != 0
    if passes.anywhere(rows):
        null = draw.y
        if draw.y is not None and draw.null_label is not None:
            null = torch.full_like(draw.y, draw.null_label)
        field = field + a_uncond * passes.on_rows(rule.unconditional, rows, x_t, t, null, t)
    return field
