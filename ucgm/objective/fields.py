"""The field F*: which direction a training target calls the true one.

One affine rule covers data, guidance in training and teachers:

    F* = a_d F_data + a_c F_cond + a_u F_uncond,    a_d + a_c + a_u = 1

with coefficients that depend on the row's region: t inside the enhancement interval, t outside
it, or label dropped.  x_t is invariant under it: every (x*, z*) of F* mixes to the same x_t.  A
source is evaluated on exactly the rows where its coefficient is not 0.

    rule        network of (cond, uncond)  inside              outside        dropped
    data                                   (1, 0, 0)           (1, 0, 0)      (1, 0, 0)
    enhanced    online, target             (1, zeta, -zeta)    (1/2, 1/2, 0)  (1/2, 0, 1/2)
    teacher     teacher                    (1-zeta, zeta, 0)   (1/2, 1/2, 0)  (1, 0, 0)
    teacher_cfg teacher, teacher           (1, zeta, -zeta)    (1/2, 1/2, 0)  (1, 0, 0)

``enhanced`` and ``teacher`` are UCGM's multi-step and few-step rules (arXiv 2505.07447, section
3.2); ``enhanced`` has the fixed point of guidance scale 1 / (1 - zeta).  ``teacher_cfg`` is for a
teacher that was not trained with enhancement: guidance scale 1 + zeta in the limit of a perfect
fit.  zeta = 0 is plain data under every rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ucgm.objective.draw import HostTimes

FieldName = Literal["data", "enhanced", "teacher", "teacher_cfg"]
Source = Literal["online", "target", "teacher"]
Affine = tuple[float, float, float]


@dataclass(frozen=True)
class FieldRule:
    """Coefficients (a_d, a_c, a_u) by region, and the networks that give the two predictions."""

    inside: Callable[[float], Affine]
    outside: Affine
    dropped: Affine
    conditional: Source
    unconditional: Source


FIELD_RULES: dict[str, FieldRule] = {
    "enhanced": FieldRule(
        lambda zeta: (1.0, zeta, -zeta), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5), "online", "target"
    ),
    "teacher": FieldRule(
        lambda zeta: (1.0 - zeta, zeta, 0.0), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0), "teacher", "teacher"
    ),
    "teacher_cfg": FieldRule(
        lambda zeta: (1.0, zeta, -zeta), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0), "teacher", "teacher"
    ),
}


def field_coefficients(
    rule: FieldRule, zeta: float, interval: tuple[float, float], host: HostTimes
) -> Tensor:
    """(3, B) coefficients of (data, conditional, unconditional) on the CPU."""
    inside = (host.t > interval[0]) & (host.t < interval[1])
    table = torch.tensor([rule.inside(zeta), rule.outside, rule.dropped], dtype=host.t.dtype)
    region = torch.where(host.dropped, 2, torch.where(inside, 0, 1))
    return table[region].T
