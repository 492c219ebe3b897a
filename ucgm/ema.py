"""Averages of the weights over a training, in float32, on the device, with foreach kernels.

    ema <- ema + (1 - decay_n) (weights - ema)        at update n = 1, 2, ...

    constant   decay_n = decay
    warm-up    decay_n = min(decay, n / (9 + n)), which keeps early weights from lingering
    power      decay_n = (1 - 1/n)^(gamma + 1)        (EDM2, arXiv 2312.02696, equation 10)

Under the power rule the share of the weights of update k in the average after update n is

    p_n(k) = (k^(gamma+1) - (k-1)^(gamma+1)) / n^(gamma+1),    k = 1..n,

which keeps its shape as n grows: the average is as long in proportion at every moment.  Its length
is the standard deviation of the peak's profile over the length of the run, for long runs

    std = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))          (EDM2, equation 11)

and std = 0.05 and 0.10 are gamma = 16.97 and 6.94.  Snapshots of two such averages are enough to
make that of another length afterwards (:mod:`ucgm.posthoc`).
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

# gamma = 0, the plain mean over all updates, is the longest; a snapshot of it still fades in time.
LONGEST = 0.28


@dataclass(frozen=True)
class EMAConfig:
    """Settings of the averages."""

    decay: float = 0.9999
    """decay per optimizer step of the weights that are sampled and evaluated."""
    target_decay: float | None = None
    """decay of the target network of the ``enhanced`` field; null: the average above serves."""
    warmup: bool = True
    """ramp the decay up as (1 + n) / (10 + n)."""
    std: float | None = None
    """relative length of a power-function average in place of ``decay``; null: ``decay`` rules."""
    tracked: tuple[float, ...] = ()
    """relative lengths of further power-function averages, of which snapshots are kept in ``ema/``;
    two, such as 0.05 and 0.10, let `ucgm ema` make any length afterwards."""
    snapshot_every: int = 5000
    """period of these snapshots in optimizer steps."""

    def __post_init__(self) -> None:
        """Refuse decays outside [0, 1], lengths without a profile and a period below one."""
        for name in ("decay", "target_decay"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"ema.{name} must be in [0, 1], got {value}")
        for value in (*self.tracked, *(() if self.std is None else (self.std,))):
            power_exponent(value)
        if len({stem_of(std) for std in self.tracked}) < len(self.tracked):
            raise ValueError(f"ema.tracked must differ in the third digit, got {self.tracked}")
        if self.snapshot_every < 1:
            raise ValueError(f"ema.snapshot_every must be at least 1, got {self.snapshot_every}")


def stem_of(std: float) -> str:
    """Name of the average of relative length ``std``, in files."""
    return f"std_{std:.3f}"


def power_exponent(std: float) -> float:
    """gamma of the power-function average whose relative length is ``std``.

    It is the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / std^2.

    Raises:
        ValueError: no such average.
    """
    if not 0.001 <= std <= LONGEST:
        raise ValueError(f"the relative length of an average must be in [0.001, 0.28], got {std}")
    ratio = std**-2
    return float(np.roots([1.0, 7.0, 16.0 - ratio, 12.0 - ratio]).real.max())


class EMA:
    """A frozen copy of a network that follows it.

    Args:
        network: what is followed.
        decay: of the constant rule, and the limit of the warm-up.
        warmup: start with a small decay.
        std: relative length of the power rule, in place of the two above.

    Attributes:
        network: the averaged network, in evaluation mode, without gradients.
        updates: number of updates so far; it decides the decay and is part of a checkpoint.
    """

    def __init__(
        self, network: nn.Module, decay: float, warmup: bool = True, std: float | None = None
    ) -> None:
        self.network = frozen_copy(network).float()
        self.decay = decay
        self.warmup = warmup
        self.exponent = None if std is None else power_exponent(std)
        self.updates = 0
        self._source = list(network.parameters())
        self._average = [p.data for p in self.network.parameters()]
        self._buffers = list(zip(self.network.buffers(), network.buffers(), strict=True))

    def decay_at(self, updates: int) -> float:
        """Decay of the update that follows ``updates`` others."""
        if self.exponent is not None:
            return (updates / (updates + 1)) ** (self.exponent + 1)
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """Follow the network by one optimizer step."""
        source = [p.detach().float() for p in self._source]
        torch._foreach_lerp_(self._average, source, 1.0 - self.decay_at(self.updates))
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
        self.updates += 1


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters take no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)
