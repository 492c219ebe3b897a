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
    guided_online online, online    (1, w, -w)                (1, 0, 0)      (1, 0, 0)
    teacher       teacher           (1 - w, w, 0)             (1/2, 1/2, 0)  (1, 0, 0)
    teacher_cfg   teacher, teacher  (1, w, -w)                (1/2, 1/2, 0)  (1, 0, 0)
    distillation  teacher, teacher  (0, w, 1 - w)             (0, 1, 0)      (0, 1, 0)
    cfg           online, online    (w, 0, 1 - w)             (w, 1 - w, 0)  (1, 0, 0)
    cfg_target    target, target    (w, 0, 1 - w)             (1, 0, 0)      (1, 0, 0)
    mixed         online, online    (w, k, 1 - w - k)         (1, 0, 0)      (1, 0, 0)
    mixed_dropped online, online    (w, k, 1 - w - k)         (1, 0, 0)      (w, k, 1 - w - k)
    faded         online, online    (k + e, 1 - k, -e)        (1, 0, 0)      (1, 0, 0)
    scaled        online, online    (1, 1 - 1/w, -(1 - 1/w))  (1, 0, 0)      (1, 0, 0)
    jump          target at (t, m)  the network's own jump, where s < m      data
    sources       those of ``sources``, with weights of their own (ucgm/objective/sources.py)

w is ``enhancement_ratio`` (zeta of UCGM, omega of MeanFlow), or the row's drawn guidance scale, and
k ``guidance_mix`` (kappa); e = k f(t) (w - 1), where f = 1 - exp(-d / (40 (1 - d))) fades the
guidance out above t = 0.8, with d = (1 - t) / 0.2, and is 1 below.

    rule          method                                      guidance scale of the fixed point
    enhanced      UCGM multi-step (arXiv 2505.07447, sec 3.2) 1 / (1 - w)
    guided        RCGM, TwinFlow                              1 / (1 - w) for its own EMA
    guided_online decoupled MeanFlow (arXiv 2510.24474)       1 / (1 - w)
    teacher       UCGM few-step, a teacher that is guided     1 + w k0, k0 that of the teacher
    teacher_cfg   few-step tuning of an unguided model        1 + w
    distillation  consistency distillation, any teacher       w
    cfg           FACM without a teacher (arXiv 2507.03738)   w
    cfg_target    TVM (arXiv 2511.19797)                      w
    mixed         MeanFlow (arXiv 2505.13447, equation 21)    w / (1 - k)
    mixed_dropped AlphaFlow (arXiv 2510.20771, its code)      w / (1 - k)
    faded         SoFlow (arXiv 2512.15657)                   w, where f = 1
    scaled        improved MeanFlow, w an input of the network  w
    jump          Shortcut: w guides its smallest jumps       w

Several teachers are averaged.  w = 0 is plain data under the rules of UCGM.  Where the two
predictions are of one network and there are no labels, one pass is both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ucgm.objective.draw import HostTimes
from ucgm.objective.passes import Source
from ucgm.objective.settings import ObjectiveSettings

Affine = tuple[float | Tensor, float | Tensor, float | Tensor]
Rule = Callable[[Tensor, float, Tensor], Affine]


def data(w: Tensor, k: float, t: Tensor) -> Affine:
    """F_data alone; w, t (B,)."""
    return 1.0, 0.0, 0.0


def extrapolated(w: Tensor, k: float, t: Tensor) -> Affine:
    """F_data and w times the guidance; w, t (B,)."""
    return 1.0, w, -w


def half(w: Tensor, k: float, t: Tensor) -> Affine:
    """The mean of data and prediction; w, t (B,)."""
    return 0.5, 0.5, 0.0


def mixed(w: Tensor, k: float, t: Tensor) -> Affine:
    """MeanFlow's rule; w, t (B,)."""
    return w, k, 1.0 - w - k


def faded(w: Tensor, k: float, t: Tensor) -> Affine:
    """SoFlow's rule; w, t (B,)."""
    late = ((1.0 - t) / 0.2).clamp(0.0, 1.0 - 1e-6)
    share = torch.where(t > 0.8, -torch.expm1(-0.025 * late / (1.0 - late)), 1.0)
    extra = k * share * (w - 1.0)
    return k + extra, 1.0 - k, -extra


@dataclass(frozen=True)
class FieldRule:
    """Coefficients (a_d, a_c, a_u) by region, and the networks that give the two predictions."""

    conditional: Source
    unconditional: Source
    inside: Rule
    outside: Rule = data
    dropped: Rule = data
    closed: bool = False
    """the ends of the interval are inside, by published code."""


FIELD_RULES: dict[str, FieldRule] = {
    "enhanced": FieldRule("online", "target", extrapolated, half, lambda w, k, t: (0.5, 0.0, 0.5)),
    "guided": FieldRule("target", "target", extrapolated),
    "guided_online": FieldRule("online", "online", extrapolated, closed=True),
    "teacher": FieldRule("teacher", "teacher", lambda w, k, t: (1.0 - w, w, 0.0), half),
    "teacher_cfg": FieldRule("teacher", "teacher", extrapolated, half),
    "distillation": FieldRule(
        "teacher",
        "teacher",
        lambda w, k, t: (0.0, w, 1.0 - w),
        lambda w, k, t: (0.0, 1.0, 0.0),
        lambda w, k, t: (0.0, 1.0, 0.0),
        closed=True,
    ),
    "cfg": FieldRule(
        "online",
        "online",
        lambda w, k, t: (w, 0.0, 1.0 - w),
        lambda w, k, t: (w, 1.0 - w, 0.0),
        closed=True,
    ),
    "cfg_target": FieldRule("target", "target", lambda w, k, t: (w, 0.0, 1.0 - w)),
    "mixed": FieldRule("online", "online", mixed, closed=True),
    "mixed_dropped": FieldRule("online", "online", mixed, data, mixed),
    "faded": FieldRule("online", "online", faded, closed=True),
    "scaled": FieldRule(
        "online", "online", lambda w, k, t: (1.0, 1.0 - 1.0 / w, -(1.0 - 1.0 / w)), closed=True
    ),
}
# Under these rules a ratio of 0 switches enhancement off altogether.
OFF_AT_ZERO = ("enhanced", "guided", "teacher", "teacher_cfg")


def is_data(objective: ObjectiveSettings) -> bool:
    """Whether the field of ``objective`` is that of the data on every row."""
    off = objective.field in OFF_AT_ZERO and objective.enhancement_ratio == 0.0
    return off or objective.field == "data"


def sources_of(objective: ObjectiveSettings) -> set[str]:
    """Networks besides the trained one that the field of ``objective`` evaluates."""
    if is_data(objective):
        return set()
    if objective.field == "jump":
        return {"target"}
    if objective.field == "sources":
        return {source.network for source in objective.sources} - {"data", "online"}
    rule = FIELD_RULES[objective.field]
    return {rule.conditional, rule.unconditional} - {"online"}


def teachers_of(objective: ObjectiveSettings) -> int:
    """How many teachers the field of ``objective`` needs at least."""
    named = [source.teacher or 0 for source in objective.sources if source.network == "teacher"]
    return max([int("teacher" in sources_of(objective)), *(k + 1 for k in named)])


class Part(NamedTuple):
    """A prediction that a field is made of; see :class:`ucgm.objective.FieldSource`."""

    network: Source
    view: str = "label"
    teacher: int | None = None


def weighted_parts(
    objective: ObjectiveSettings, host: HostTimes, progress: float, labels: bool
) -> tuple[list[Part], Tensor]:
    """The K networks of the field, and (1 + K, B) weights of the data and of them, on the CPU.

    Without ``labels``, with and without one are the same, of the same network.
    """
    if is_data(objective):
        return [], torch.ones_like(host.t)[None]
    if objective.field == "sources":
        of_data, found = torch.zeros_like(host.t), dict[Part, Tensor]()
        for source in objective.sources:
            weight = source.at(host.t, progress)
            if source.network == "data":
                of_data = of_data + weight
                continue
            view = "label" if source.view == "null" and not labels else source.view
            part = Part(source.network, view, source.teacher)
            found[part] = found[part] + weight if part in found else weight
        return list(found), torch.stack([of_data, *found.values()])
    rule, table = FIELD_RULES[objective.field], coefficients(objective, host)
    if not labels and rule.conditional == rule.unconditional:
        table[1], table[2] = table[1] + table[2], 0.0
    return [Part(rule.conditional), Part(rule.unconditional, "null")], table


def coefficients(objective: ObjectiveSettings, host: HostTimes) -> Tensor:
    """(3, B) coefficients of (data, conditional, unconditional) on the CPU."""
    rule, t = FIELD_RULES[objective.field], host.t
    w = torch.full_like(t, objective.enhancement_ratio)
    if host.guidance is not None:
        w = host.guidance
    inside, outside, dropped = (
        torch.stack(
            [
                torch.as_tensor(a, dtype=t.dtype).expand_as(t)
                for a in region(w, objective.guidance_mix, t)
            ]
        )
        for region in (rule.inside, rule.outside, rule.dropped)
    )
    low, high = objective.enhancement_interval
    within = (t >= low) & (t <= high) if rule.closed else (t > low) & (t < high)
    return torch.where(host.dropped, dropped, torch.where(within, inside, outside))
