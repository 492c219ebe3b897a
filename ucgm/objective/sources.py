"""Fields of several sources: F* = sum_k a_k F_k, with weights that sum to 1.

    a                                       method
    teacher 1                               output distillation
    teacher 0.9, data 0.1                   the same, as TinyFusion mixes it (arXiv 2412.01199)
    every teacher 1/K                       mean of teachers (``teacher: null`` is that mean)
    teacher w, teacher without label 1 - w  a teacher under guidance w (arXiv 2210.03142)
    teacher 0 w, teacher 1 1 - w            an autoguided teacher, 1 the weaker (arXiv 2406.02507)
    teacher w, its exit head 1 - w          a teacher under internal guidance, in one pass more
    target b, data 1 - b                    self-distillation from the EMA

Since (x, z) of every F_k mix to the same x_t, so do those of F*.  The gradient of a squared error
to F* is that of the mixed losses sum_k a_k |F - F_k|^2.  A mean of fields is the field of the
product of densities, not of their mixture: right for teachers of one distribution, wrong for
specialists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ucgm.runtime.values import Interval, Number, Range, check_values


@dataclass(frozen=True)
class FieldSource:
    """One of the sources of a field, and its weight."""

    network: Literal["data", "online", "target", "teacher"] = "teacher"
    """whose F: that of the sample and its noise, the trained network's, its EMA's, a teacher's."""
    teacher: Annotated[int, Range(0, 99)] | None = None
    """which of ``train.teacher``, from 0; null: the mean of all."""
    view: Literal["label", "null", "exit"] = "label"
    """with the sample's label, without one, or with it by the network's exit head."""
    weight: Number = 1.0
    """its share of F*, which may be negative."""
    end_weight: Number | None = None
    """its share at the end of the run, reached in a line; null: ``weight`` all along."""
    interval: Interval = (0.0, 1.0)
    """times at which it counts, low <= t < high, or t = high = 1."""

    def __post_init__(self) -> None:
        """Refuse what a source does not have."""
        check_values(self, "objective.sources")
        if self.network == "data" and self.view != "label":
            raise ValueError(f"objective.sources: data have no view {self.view!r}")
        if self.network != "teacher" and self.teacher is not None:
            raise ValueError(f"objective.sources: {self.network} is no teacher: leave teacher out")

    def at(self, t: Tensor, progress: float) -> Tensor:
        """Its weights (B,) at times t (B,) and a share of the run."""
        end = self.weight if self.end_weight is None else self.end_weight
        low, high = self.interval
        inside = (t >= low) & ((t < high) | (t == 1.0) & (high == 1.0))
        return (self.weight + (end - self.weight) * progress) * inside.to(t.dtype)


def check_sources(sources: Sequence[FieldSource]) -> None:
    """Refuse weights that do not sum to 1 at every time, at the start and at the end of the run.

    Raises:
        ValueError: where, and what the sum is.
    """
    if not sources:
        raise ValueError(
            "objective.field sources needs objective.sources, such as [{network: teacher, weight: "
            "0.9}, {network: data, weight: 0.1}]"
        )
    ends = sorted({0.0, 1.0, *(end for source in sources for end in source.interval)})
    for low, high in zip(ends, ends[1:], strict=False):
        for progress, when in ((0.0, "start"), (1.0, "end")):
            middle = torch.tensor([(low + high) / 2], dtype=torch.float64)
            total = sum(float(source.at(middle, progress)) for source in sources)
            if abs(total - 1.0) > 1e-6:
                raise ValueError(
                    f"the weights of objective.sources must sum to 1: for {low:g} <= t < {high:g} "
                    f"at the {when} of the run they sum to {total:g}"
                )
