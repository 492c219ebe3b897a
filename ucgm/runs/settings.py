"""Settings of a training: TrainConfig, OptimizerConfig with its schedule, EMAConfig with its
formulas.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from ucgm.runtime.values import Count, NotNegative, Positive, Range, Share, check_values

Decay = Annotated[float, Range(0.0, 0.9999999)]


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and rhythm of a training; periods are in optimizer steps."""

    steps: Count = 100_000
    """optimizer steps."""
    global_batch: Count = 256
    """samples per optimizer step, over all processes and accumulation steps."""
    accumulation: Count = 1
    """forward and backward passes per optimizer step."""
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] = 0
    """seed of initial weights, data order, noise, times and label dropout."""
    grad_clip: Positive | None = None
    """largest gradient norm; null: no clipping."""
    init: str | None = None
    """run folder whose EMA weights the training starts from; they also are the frozen teacher."""
    keep_blocks: tuple[Annotated[int, Range(0, 999)], ...] = ()
    """blocks of ``init`` that are kept, in this order: a student of that depth, whose teacher is
    the whole network; none: all."""
    teacher: tuple[str, ...] = ()
    """run folders whose EMA weights are the frozen teachers, in place of ``init``."""
    new_labels: bool = False
    """draw the table of labels anew, for data of other classes than those of ``init``."""
    num_workers: Annotated[int, Range(0, 1024)] = 0
    """loader threads that read ahead."""
    log_every: Count = 50
    """period of a line in metrics.jsonl."""
    preview_every: Count = 1000
    """period of preview grids in samples/."""
    checkpoint_every: Count = 1000
    """period of checkpoints."""
    keep_checkpoints: Count = 2
    """how many of the newest checkpoints are kept."""
    milestone_every: Count | None = None
    """a checkpoint at every multiple of this step is made and kept for ever; null: none."""
    mirror: str | None = None
    """URL of a copy of the run folder, such as s3://BUCKET/RUN, that is renewed with every
    checkpoint; a training in an empty folder goes on from it."""
    max_skipped: Count = 20
    """stop after so many steps in a row with a non-finite loss or gradient."""
    sharding: Literal["none", "fsdp2"] = "none"
    """``fsdp2`` spreads weights, gradients, moments, averages and teacher over the processes."""
    compile: bool | None = None
    """compile every block of the networks; null: on a GPU."""
    tracker: str | None = None
    """an accelerate tracker beside metrics.jsonl, such as wandb or tensorboard."""

    def __post_init__(self) -> None:
        check_values(self, "train")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and schedule; the learning rate is a pure function of the step."""

    name: Literal["adamw", "radam", "lion", "muon"] = "adamw"
    """adamw, radam, lion (about a third of AdamW's learning rate), or muon (AdamW's)."""
    lr: NotNegative = 2e-4
    """peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """decay of the first and second moment; of Lion's update and momentum."""
    eps: NotNegative = 1e-8
    """added to the root of the second moment; Lion has none."""
    weight_decay: NotNegative = 0.0
    """decoupled weight decay."""
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    """shape after the warm-up: cosine falls to 0 at the last step, inverse_sqrt as
    1 / sqrt(step / reference_steps) from there on (EDM2, arXiv 2312.02696, section 2)."""
    warmup_steps: Annotated[int, Range(0, 10**9)] = 0
    """steps of linear warm-up."""
    reference_steps: Count = 70_000
    """step at which inverse_sqrt begins to fall."""

    def __post_init__(self) -> None:
        check_values(self, "optimizer")

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
        words = [f"{self.name}, learning rate {self.lr:g}"]
        if self.warmup_steps:
            words[0] += f" after {self.warmup_steps:,} steps of warm-up"
        if self.schedule == "cosine":
            words.append("then a cosine to 0" if self.warmup_steps else "a cosine to 0")
        elif self.schedule == "inverse_sqrt":
            words.append(f"from step {self.reference_steps:,} on falling as 1 / sqrt(step)")
        if self.weight_decay:
            words.append(f"weight decay {self.weight_decay:g}")
        return ", ".join(words)


@dataclass(frozen=True)
class EMAConfig:
    """Settings of the averages."""

    decay: Share = 0.9999
    """decay per optimizer step of the weights that are sampled and evaluated."""
    target_decay: Share | None = None
    """decay of the target network of the ``enhanced`` field; null: the average above serves."""
    warmup: bool = True
    """ramp the decay up as (1 + n) / (10 + n)."""
    std: float | None = None
    """relative length of a power-function average in place of ``decay``; null: ``decay`` rules."""
    tracked: tuple[float, ...] = ()
    """relative lengths of further power-function averages, of which snapshots are kept in ``ema/``;
    two, such as 0.05 and 0.10, let `ucgm ema` make any length afterwards."""
    snapshot_every: Count = 5000
    """period of these snapshots in optimizer steps."""

    def __post_init__(self) -> None:
        """Refuse lengths without a profile."""
        check_values(self, "ema")
        for value in (*self.tracked, *(() if self.std is None else (self.std,))):
            power_exponent(value)
        if len({stem_of(std) for std in self.tracked}) < len(self.tracked):
            raise ValueError(f"ema.tracked must differ in the third digit, got {self.tracked}")

    def describe(self, target: bool) -> str:
        """A few words for the log; ``target``: the objective learns from an average."""
        words = [f"average of decay {self.decay:g}{' after a warm-up' if self.warmup else ''}"]
        if self.std is not None:
            words = [f"average whose length is {self.std:g} of the run (ema.std)"]
        if target and self.target_decay is not None:
            words.append(f"the objective's target: decay {self.target_decay:g}")
        return "; ".join([*words, *(f"snapshots of length {std:g}" for std in self.tracked)])


@dataclass(frozen=True)
class AlignmentConfig:
    """Whose features the network's tokens follow, where ``objective.alignment`` has a weight."""

    extractor: str | None = None
    """extractor that sees every batch: dinov2, digits, or module:function; null: its features lie
    beside the latents (``ucgm encode --features``)."""
    weights: str | None = None
    """file of its weights; null: those it ships with."""
    layer: Count | None = None
    """block whose tokens follow; null: a third of the depth, at most 8."""
    projector: Literal["mlp", "conv"] = "mlp"
    """mlp of two hidden layers (REPA), or one convolution over the tokens (iREPA)."""
    hidden: Annotated[int, Range(1, 65_536)] = 2048
    """width of the MLP."""
    kernel: Annotated[int, Range(1, 15)] = 3
    """side of the convolution, odd."""
    gamma: Share | None = None
    """share of the features' mean over places that is taken off before they are normalised there
    (iREPA: 0.6 of latents, 0.8 of pixels); null: they are as they are."""

    def __post_init__(self) -> None:
        """Refuse a convolution without a middle."""
        check_values(self, "alignment")
        if self.kernel % 2 == 0:
            raise ValueError(f"alignment.kernel must be odd, got {self.kernel}")


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
