"""What a training will need, said before its first step: memory, counted, and time, tried out."""

import os
import time
from typing import NamedTuple

import psutil
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

from ucgm.data import Dataset
from ucgm.data.loader import BatchPlan
from ucgm.runs.config import Config, read_config
from ucgm.runs.remote import local_run
from ucgm.runtime.precision import autocast, precision
from ucgm.training.teachers import names_of_teachers
from ucgm.training.throughput import Work, count_work

GIB = 2**30


class Memory(NamedTuple):
    """Bytes that one process needs."""

    state: float
    """weights, gradients, moments, averages and teacher."""
    row: float
    """activations of a row that autograd keeps until its backward pass."""


def needed_memory(
    config: Config, shape: tuple[int, int, int], num_classes: int, plan: BatchPlan, work: Work
) -> Memory:
    """Bytes of one process: weights, gradients, moments, averages, teacher, and activations.

    Activations are those that autograd keeps of one forward pass, counted with fake tensors; with
    gradient checkpointing they are an upper bound no more, but near.

    Args:
        config: of the training.
        shape: (C, H, W) of the data.
        num_classes: of the data.
        plan: how many processes there are.
        work: of a row.
    """
    objective, ema = config.objective, config.ema
    copies = 5 + len(ema.tracked)  # weights, gradient, moments, average
    copies += objective.needs_teacher and not work.teachers
    copies += objective.needs_target and ema.target_decay is not None
    state = 4.0 * (work.parameters * copies + work.teachers)
    if config.train.sharding == "fsdp2":
        state /= plan.world
    return Memory(state, _kept_bytes(config, shape, num_classes))


def _kept_bytes(config: Config, shape: tuple[int, int, int], num_classes: int) -> float:
    """Bytes that autograd keeps of a row until its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    half = precision() == "bf16"
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        network = config.model.build(shape, num_classes).train()
        weights = {p.untyped_storage()._cdata for p in network.parameters()}
        x, t, y = torch.empty(1, *shape), torch.empty(1), torch.empty(1, dtype=torch.int64)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = network(x, t, y)
            total = sum(size for storage, size in kept.items() if storage not in weights)
        del out
    return float(total)


def check_memory(
    memory: Memory, plan: BatchPlan, device: torch.device, in_passes: bool = True
) -> str:
    """How much of what is free on ``device`` a step of ``plan`` needs; in words.

    Args:
        memory: of a row, and of what there is once.
        plan: rows of a step.
        device: of the training.
        in_passes: a step may be several passes; one with losses of all its samples may not.

    Raises:
        ValueError: it cannot fit, with the batch and the accumulation that do.
    """
    if device.type == "cuda":
        free = float(torch.cuda.mem_get_info(device)[0])
    else:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", plan.world))
        free = psutil.virtual_memory().available / processes
    rows = plan.micro_batch
    needed = memory.state + rows * memory.row
    if needed <= free:
        return f"memory {_size(needed)} of {_size(free)} that are free"
    raise ValueError(
        f"a training step needs about {_size(needed)} of memory, {_size(memory.state)} of them for "
        f"weights, moments and averages, and {device} has {_size(free)} free: "
        f"{_remedies(memory, plan, free, in_passes)}choose a smaller model.size"
    )


def _remedies(memory: Memory, plan: BatchPlan, free: float, in_passes: bool) -> str:
    """What makes the rows of a step fewer; nothing where one row does not fit either."""
    rows, most = plan.micro_batch, int((free - memory.state) // max(memory.row, 1.0))
    if most < 1:
        return ""
    whole = next(n for n in range(most, 0, -1) if rows % n == 0)
    passes = (
        f"set train.accumulation {plan.accumulation * (rows // whole)} for {whole} rows at once "
        f"instead of {rows}, "
    )
    return (
        f"lower train.global_batch to {most * plan.world * plan.accumulation:,} or less, "
        f"{passes if in_passes else ''}set model.gradient_checkpointing true, or "
    )


def _size(count: float) -> str:
    """Bytes in words, such as 45 MiB or 3.2 GiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def cost_of(
    config: Config, dataset: Dataset, plan: BatchPlan, device: torch.device
) -> tuple[Work, str]:
    """Work of a row, and in words the memory of a step, which is refused where it does not fit."""
    data = dataset.shape, dataset.num_classes
    taught = map(local_run, names_of_teachers(config))
    teaching = [read_config(run / "config.yaml").model for run in taught]
    work = count_work(config.model, *data, config.objective, teaching)
    needed = needed_memory(config, *data, plan, work)
    return work, check_memory(needed, plan, device, in_passes=not config.objective.sets)


def time_of_step(
    network: nn.Module, shape: tuple[int, int, int], plan: BatchPlan, work: Work, peak: float
) -> float:
    """Seconds of an optimizer step, from some rows forward and backward.

    Changes nothing: no gradient is kept, no random number drawn, and the network is in evaluation
    mode meanwhile.  A sharded network is not tried out: it is taken to reach 0.4 of the peak.

    Args:
        network: on its device.
        shape: (C, H, W) of the data.
        plan: rows of a step.
        work: of a row.
        peak: floating-point operations per second of one process.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    if any(isinstance(p, DTensor) for p in weights):
        return work.of_step(plan) / (0.4 * peak)
    device = weights[0].device
    # Operations that take a second or so.
    most = (1e14 if device.type == "cuda" else 5e10) / max(work.trained, 1.0)
    rows = max(1, min(plan.micro_batch, int(most)))
    x, t = torch.zeros(rows, *shape, device=device), torch.full((rows,), 0.5, device=device)
    y = torch.zeros(rows, dtype=torch.int64, device=device)
    training, seconds = network.training, float("inf")
    network.eval()
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        # Compiled blocks run as they are: other rows and another mode would be other programs.
        with autocast(device), torch.compiler.set_stance("force_eager"):
            loss = network(x, t, y).square().mean()
        torch.autograd.grad(loss, weights, allow_unused=True)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds = min(seconds, time.perf_counter() - start)
    network.train(training)
    return seconds / rows * work.of_step(plan) / max(work.trained, 1.0)


def duration(seconds: float) -> str:
    """Such as ``7.0 ms``, ``40 s``, ``12 min``, ``3.5 h`` or ``20 days``."""
    for unit, length, most in (("ms", 1e-3, 100), ("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * length:
            amount = seconds / length
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
