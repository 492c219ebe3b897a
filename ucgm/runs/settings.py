"""Settings of a training: TrainConfig, OptimizerConfig with its schedule, EMAConfig with its
formulas.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ucgm.runtime.choices import check_choices


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and rhythm of a training; periods are in optimizer steps."""

    steps: int = 100_000
    """optimizer steps."""
    global_batch: int = 256
    """samples per optimizer step, over all processes and accumulation steps."""
    accumulation: int = 1
    """forward and backward passes per optimizer step."""
    seed: int = 0
    """seed of initial weights, data order, noise, times and label dropout."""
    grad_clip: float | None = None
    """largest gradient norm; null: no clipping."""
    init: str | None = None
    """run folder whose EMA weights the training starts from; they also are the frozen teacher."""
    num_workers: int = 0
    """loader threads that read ahead."""
    log_every: int = 50
    """period of a line in metrics.jsonl."""
    preview_every: int = 1000
    """period of preview grids in samples/."""
    checkpoint_every: int = 1000
    """period of checkpoints."""
    keep_checkpoints: int = 2
    """how many of the newest checkpoints are kept."""
    milestone_every: int | None = None
    """a checkpoint at every multiple of this step is made and kept for ever; null: none."""
    max_skipped: int = 20
    """stop after so many steps in a row with a non-finite loss or gradient."""
    sharding: Literal["none", "fsdp2"] = "none"
    """``fsdp2`` spreads weights, gradients, moments, averages and teacher over the processes."""
    compile: bool | None = None
    """compile every block of the networks; null: on a GPU."""
    tracker: str | None = None
    """an accelerate tracker beside metrics.jsonl, such as wandb or tensorboard."""

    def __post_init__(self) -> None:
        """Refuse counts below one, and a limit that would leave no gradient."""
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(
                f"train.grad_clip must be above 0, got {self.grad_clip}: null is no clipping"
            )
        if self.num_workers < 0:
            raise ValueError(f"train.num_workers must be at least 0, got {self.num_workers}")
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name not in ("seed", "num_workers", "compile", "grad_clip") and (
                isinstance(value, int) and value < 1
            ):
                raise ValueError(f"train.{f.name} must be at least 1, got {value}")
        check_choices(self, "train")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and schedule; the learning rate is a pure function of the step."""

    name: Literal["adamw", "radam", "lion", "muon"] = "adamw"
    """adamw, radam, lion (about a third of AdamW's learning rate), or muon (AdamW's)."""
    lr: float = 2e-4
    """peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """decay of the first and second moment; of Lion's update and momentum."""
    eps: float = 1e-8
    """added to the root of the second moment; Lion has none."""
    weight_decay: float = 0.0
    """decoupled weight decay."""
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    """shape after the warm-up: cosine falls to 0 at the last step, inverse_sqrt as
    1 / sqrt(step / reference_steps) from there on (EDM2, arXiv 2312.02696, section 2)."""
    warmup_steps: int = 0
    """steps of linear warm-up."""
    reference_steps: int = 70_000
    """step at which inverse_sqrt begins to fall."""

    def __post_init__(self) -> None:
        """Refuse names and numbers without a meaning."""
        check_choices(self, "optimizer")
        if self.warmup_steps < 0 or self.reference_steps < 1:
            raise ValueError(
                "optimizer.warmup_steps must be at least 0 and optimizer.reference_steps at least "
                f"1, got {self.warmup_steps} and {self.reference_steps}"
            )

    def lr_at(self, step: int, total_steps: int) -> float:
        """Learning rate of optimizer step ``step`` = 0 .. total_steps - 1."""
        ramp = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        shape = 1.0
        if self.schedule == "cosine":
            done = max(0, step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
            shape = 0.5 * (1.0 + math.cos(math.pi * done))
        elif self.schedule == "inverse_sqrt":
            shape = 1.0 / math.sqrt(max(step / self.reference_steps, 1.0))
        return self.lr * ramp * shape

    def describe(self) -> str:
        """A few words for the log."""
        words = [f"{self.name} lr {self.lr:g}", self.schedule]
        if self.warmup_steps:
            words.append(f"warm-up {self.warmup_steps:,}")
        if self.weight_decay:
            words.append(f"weight decay {self.weight_decay:g}")
        return ", ".join(words)


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

    def describe(self, target: bool) -> str:
        """A few words for the log; ``target``: the objective learns from an average."""
        words = [f"decay {self.decay:g}{' after a warm-up' if self.warmup else ''}"]
        if self.std is not None:
            words = [f"std {self.std:g}"]
        if target and self.target_decay is not None:
            words.append(f"target {self.target_decay:g}")
        return ", ".join([*words, *(f"tracked std {std:g}" for std in self.tracked)])


def stem_of(std: float) -> str:
    """Name of the average of relative length ``std``, in files."""
    return f"std_{std:.3f}"


def power_exponent(std: float) -> float:
    """gamma of the power-function average of relative length ``std`` (EDM2, equation 11).

    It is the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / std^2.  gamma = 0, the plain
    mean over all updates, is the longest: std = 0.289.

    Raises:
        ValueError: no such average.
    """
    if not 0.001 <= std <= 0.28:
        raise ValueError(f"the relative length of an average must be in [0.001, 0.28], got {std}")
    ratio = std**-2
    return float(np.roots([1.0, 7.0, 16.0 - ratio, 12.0 - ratio]).real.max())
