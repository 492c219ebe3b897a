"""Exponential moving average of the weights, in float32, on the device, with foreach kernels.

    ema <- ema + (1 - decay_n) (weights - ema),    decay_n = min(decay, (1 + n) / (10 + n))

with the warm-up (n counts updates) that keeps early weights from lingering.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class EMAConfig:
    """Settings of the averages."""

    decay: float = 0.9999
    """decay per optimizer step of the weights that are sampled and evaluated."""
    target_decay: float | None = None
    """decay of the target network of the ``enhanced`` field; null: the average above serves."""
    warmup: bool = True
    """ramp the decay up as (1 + n) / (10 + n)."""

    def __post_init__(self) -> None:
        """Refuse decays outside [0, 1]."""
        for name in ("decay", "target_decay"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"ema.{name} must be in [0, 1], got {value}")


class EMA:
    """A frozen copy of a network that follows it.

    Attributes:
        network: the averaged network, in evaluation mode, without gradients.
        updates: number of updates so far; it decides the warm-up and is part of a checkpoint.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = True) -> None:
        self.network = frozen_copy(network).float()
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self._source = list(network.parameters())
        self._average = [p.data for p in self.network.parameters()]
        self._buffers = list(zip(self.network.buffers(), network.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Follow the network by one optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        decay = decay if self.warmup else self.decay
        source = [p.detach().float() for p in self._source]
        torch._foreach_lerp_(self._average, source, 1.0 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
        self.updates += 1


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters take no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)
