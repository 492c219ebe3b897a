"""Processes and precision: what ``accelerate launch`` and ``torchrun`` decide.

``accelerate`` wraps a model's forward in autocast when it knows the precision, which would also
wrap the passes that must stay in float32.  So it is told "no", and the step opens autocast itself.

Compilation is regional: the blocks of a network share one program, so that compiling takes as long
for 28 of them as for one, and passes on other numbers of rows share it too.
"""

import contextlib
import ctypes
import itertools
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from ucgm.sharding import blocks_of


def requested_processes() -> int | None:
    """The number of processes the launcher was asked for; None when nobody asked.

    ``accelerate launch --cpu --num_processes 2`` starts one process and says nothing; its command
    line, in the parent process, is the only trace of the request.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    try:
        import psutil

        parent = psutil.Process().parent()
        words = parent.cmdline() if parent else []
    except (ImportError, OSError, psutil.Error):
        return None
    if not any("accelerate" in word for word in words[:3]):
        return None
    for word, following in itertools.pairwise([*words, ""]):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            return int(value or following)
    return None


def precision() -> str:
    """``no`` or ``bf16``, as ``accelerate launch --mixed_precision`` says."""
    name = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if name not in ("no", "bf16"):
        raise ValueError(f"--mixed_precision {name} is not supported: use bf16 or no")
    return name


def autocast(device: torch.device, sharded: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 when the launcher asked for it.

    Its cache of weights would keep a whole copy of a ``sharded`` network, and is off for one.
    """
    if precision() == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=not sharded)
    return contextlib.nullcontext()


def keep_freed_memory(device: torch.device) -> bool:
    """Let a training on a CPU keep what it frees for its next step; returns whether it does.

    A step frees its activations and asks for them again.  glibc hands large pieces back to the
    kernel, which clears every page anew: up to a tenth of the step (scripts/bench/training.py).
    The process holds its largest step until it ends, which is what it needs anyway.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    max_mappings, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    return set_option is not None and bool(
        set_option(max_mappings, 0) and set_option(trim_threshold, -1)
    )


def make_accelerator(tracker: str | None = None, run_dir: Path | None = None) -> Accelerator:
    """The accelerator of this process.

    Args:
        tracker: beside metrics.jsonl.
        run_dir: where it keeps its files.

    Raises:
        ValueError: fewer processes run than the launcher was asked for.
    """
    asked = requested_processes()
    several = asked is not None and asked > 1
    precision()
    accelerator = Accelerator(
        mixed_precision="no",
        # Without a GPU accelerate starts single processes unless it is told to use the CPU.
        cpu=several and not torch.cuda.is_available(),
        log_with=tracker,
        project_dir=run_dir,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(hours=1)),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )
    if asked is not None and accelerator.num_processes != asked:
        raise ValueError(
            f"{asked} processes were asked for and {accelerator.num_processes} runs. On a machine "
            f"without GPUs start them with: torchrun --standalone --nproc_per_node {asked} -m ucgm"
        )
    return accelerator


def compile_blocks(network: nn.Module) -> None:
    """Compile the repeated blocks in place; names of weights stay, and jvp passes run as before.

    What is compiled is the forward function of a block and not its call, so that the hooks which
    gather sharded weights stay outside.
    """
    # One program for each of: with gradient or without, trained or frozen, precision, many rows or
    # one; beyond the limit torch would go on uncompiled.
    settings = torch._dynamo.config
    limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    setattr(settings, limit, max(32, getattr(settings, limit)))  # the second name is torch 2.6's
    for block in blocks_of(network):
        block.forward = torch.compile(block.forward)
