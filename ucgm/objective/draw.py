"""The randomness of one training step, drawn apart from the arithmetic that uses it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class HostTimes(NamedTuple):
    """CPU copies of what decides which rows need which pass, so that no step waits for a GPU."""

    t: Tensor
    s: Tensor
    dropped: Tensor


@dataclass(frozen=True)
class Draw:
    """All random numbers of a batch; :meth:`Objective.terms` is a pure function of it.

    Attributes:
        x: (B, ...) data.
        y: (B,) int64 labels, the null label already on dropped rows; None without classes.
        z: (B, ...) standard normal noise.
        t: (B,) times in [0, 1].
        s: (B,) destination times, s <= t; None: what the objective prescribes.
        dropped: (B,) bool, rows whose label was dropped; None: no row.
        null_label: the label of the unconditional pass.
        host: CPU copies of (t, s, dropped); made from the tensors when absent.
    """

    x: Tensor
    y: Tensor | None
    z: Tensor
    t: Tensor
    s: Tensor | None = None
    dropped: Tensor | None = None
    null_label: int | None = None
    host: HostTimes | None = None

    def host_times(self) -> HostTimes:
        """CPU copies of (t, s, dropped); s must be known."""
        if self.host is not None:
            return self.host
        assert self.s is not None
        dropped = self.dropped if self.dropped is not None else torch.zeros_like(self.t).bool()
        return HostTimes(self.t.cpu(), self.s.cpu(), dropped.cpu())


class Terms(NamedTuple):
    """What one step computes.

    loss: scalar, the weighted mean; per_sample: (B,) unweighted loss of each row;
    prediction: (B, ...) F of the network, with gradient; target: (B, ...) F_tgt, without.
    """

    loss: Tensor
    per_sample: Tensor
    prediction: Tensor
    target: Tensor
