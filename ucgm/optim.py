"""Optimizers and learning-rate schedules, as settings."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and schedule; the learning rate is a pure function of the step."""

    name: Literal["adamw", "radam"] = "adamw"
    """AdamW (arXiv 1711.05101) or RAdam (arXiv 1908.03265)."""
    lr: float = 2e-4
    """peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """decay of the first and second moment."""
    eps: float = 1e-8
    """added to the root of the second moment."""
    weight_decay: float = 0.0
    """decoupled weight decay."""
    schedule: Literal["constant", "cosine"] = "constant"
    """shape after the warm-up; cosine falls to 0 at the last step."""
    warmup_steps: int = 0
    """steps of linear warm-up."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer, with fused or foreach kernels."""
        parameters = [p for p in parameters if p.requires_grad]
        common: dict[str, Any] = dict(
            lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )
        if self.name == "adamw":
            return torch.optim.AdamW(parameters, fused=True, **common)
        return torch.optim.RAdam(parameters, foreach=True, decoupled_weight_decay=True, **common)

    def lr_at(self, step: int, total_steps: int) -> float:
        """Learning rate of optimizer step ``step`` = 0 .. total_steps - 1."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        span = max(1, total_steps - self.warmup_steps)
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * (step - self.warmup_steps) / span))
