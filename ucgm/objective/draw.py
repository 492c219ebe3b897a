"""The randomness of one training step, drawn apart from the arithmetic that uses it."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class HostTimes(NamedTuple):
    """CPU copies of what decides which rows need which pass, so that no step waits for a GPU."""

    t: Tensor
    s: Tensor
    m: Tensor
    dropped: Tensor
    guidance: Tensor | None = None


class Twin(NamedTuple):
    """More random numbers of a TwinFlow batch.

    part: (B,) int64 on the CPU, see :class:`ucgm.objective.TwinFlowSplit`; source: (B, ...) noise
    of the network's own samples; noise: (B, ...) and time: (B,) of the matching term.
    """

    part: Tensor
    source: Tensor
    noise: Tensor
    time: Tensor


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
        m: (B,) anchors, s <= m <= t, m = t for the limit; None: what the objective prescribes.
        guidance: (B,) guidance scales of an objective that draws them.
        twin: more numbers of a TwinFlow batch.
        host: CPU copies; made from the tensors when absent.
    """

    x: Tensor
    y: Tensor | None
    z: Tensor
    t: Tensor
    s: Tensor | None = None
    dropped: Tensor | None = None
    null_label: int | None = None
    m: Tensor | None = None
    guidance: Tensor | None = None
    twin: Twin | None = None
    host: HostTimes | None = None

    def completed(self, s: Tensor, m: Tensor) -> "Draw":
        """The same draw with destinations s (B,), anchors m (B,) and their CPU copies."""
        dropped = self.dropped if self.dropped is not None else torch.zeros_like(self.t).bool()
        host = self.host or HostTimes(
            self.t.cpu(),
            s.cpu(),
            m.cpu(),
            dropped.cpu(),
            None if self.guidance is None else self.guidance.cpu(),
        )
        return replace(self, s=s, m=m, dropped=dropped, host=host)


class Terms(NamedTuple):
    """What one step computes.

    loss: scalar, the weighted mean and the additive terms; per_sample: (B,) unweighted loss of each
    row; prediction: (B, ...) F of the network, with gradient; target: (B, ...) F_tgt, without.
    """

    loss: Tensor
    per_sample: Tensor
    prediction: Tensor
    target: Tensor
