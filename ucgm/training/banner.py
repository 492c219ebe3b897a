"""What is about to happen, in a few lines: printed once, when a training starts or continues."""

from pathlib import Path

import torch
from torch import nn

from ucgm.data import Dataset
from ucgm.data.loader import BatchPlan
from ucgm.runs.config import Config
from ucgm.runtime.precision import precision
from ucgm.training.throughput import Work


def banner(
    config: Config,
    run_dir: Path,
    step: int,
    plan: BatchPlan,
    network: nn.Module,
    dataset: Dataset,
    device: torch.device,
    work: Work,
    peak: float,
) -> str:
    """Processes, batch, network, passes, data and codec, averages, optimizer: one line each.

    Args:
        config: of the run.
        run_dir: its folder.
        step: optimizer steps that are done.
        plan: how the global batch is cut.
        network: the one that is trained.
        dataset: what it learns from.
        device: of this process.
        work: of one row.
        peak: floating-point operations per second of one process.
    """
    train = config.train
    count = sum(p.numel() for p in network.parameters())
    sharding = "" if train.sharding == "none" else f", sharding {train.sharding}"
    if sharding and plan.world == 1:
        sharding += " without effect in one process"
    return "\n  ".join(
        [
            f"run {run_dir}: step {step:,} of {train.steps:,}",
            f"world size {plan.world} ({device}, precision {precision()}{sharding}), global batch "
            f"{train.global_batch} = {plan.world} x {train.accumulation} x {plan.micro_batch}",
            f"{type(network).__name__.removeprefix('FSDP')} with {count:,} parameters, "
            f"objective {config.objective.preset}, transport {config.objective.transport}",
            f"passes: {work.describe()}; measured peak {peak / 1e12:,.3g} TFLOP/s per process",
            dataset.describe(),
            f"averages: {_averages(config)}",
            f"optimizer: {config.optimizer.describe()}"
            + (f", clip {train.grad_clip:g}" if train.grad_clip else ""),
        ]
    )


def _averages(config: Config) -> str:
    """Lengths of the averages: relative ones of the power rule, decays of the others."""
    ema = config.ema
    decay = f"decay {ema.decay:g}{' after a warm-up' if ema.warmup else ''}"
    found = [decay if ema.std is None else f"std {ema.std:g}"]
    if config.objective.needs_target and ema.target_decay is not None:
        found.append(f"target {ema.target_decay:g}")
    found += [f"tracked std {std:g}" for std in ema.tracked]
    return ", ".join(found)
