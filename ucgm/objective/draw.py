"""The randomness of one training step, drawn apart from the arithmetic that uses it."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class HostTimes(NamedTuple):
    """CPU copies of what decides which rows need which pass, so that no step waits for a GPU."""

    t: Tensor
    s: Tensor
    m: Tensor
    dropped: Tensor
    guidance: Tensor | None = None
    """scales of the field: 1 outside the drawn interval."""
    flow_time: Tensor | None = None


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
        guidance: (B,) guidance scales of an objective that draws them; or (B, 3), the scale and the
            ends of its interval of t.
        flow_time: (B,) times of a flow-matching term that has its own.
        twin: more numbers of a TwinFlow batch.
        host: CPU copies, which a draw has when nothing of it is left open.
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
    flow_time: Tensor | None = None
    twin: Twin | None = None
    host: HostTimes | None = None


class Terms(NamedTuple):
    """What one step computes.

    loss: scalar, the weighted mean and the additive terms; per_sample: (B,) unweighted loss of each
    row; prediction: (B, ...) F of the network, with gradient; target: (B, ...) F_tgt, without.
    """

    loss: Tensor
    per_sample: Tensor
    prediction: Tensor
    target: Tensor
