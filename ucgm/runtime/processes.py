"""Processes and progress: who am I, what is my share, how long will it take.

Started by ``torchrun`` or ``accelerate launch``, the process joins its group (gloo on CPUs, NCCL
on GPUs); started alone, it is the world.  Work is shared in strides (item k goes to process
k mod size), so that no process waits for another before the end.
"""

import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed

from ucgm.runtime.precision import precision

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The processes of one job.

    Attributes:
        rank: number of this process.
        size: how many there are.
        device: device of this process, for example ``cpu`` or ``cuda:1``.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process writes the files that are written once."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The part of ``items`` that is this process's; lengths may differ by one."""
        return items[self.rank :: self.size]

    def leave(self) -> None:
        """End the group when all processes have come here; the last thing a command does."""
        if self.size > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            torch.distributed.barrier()


def join_world(device: str | None = None) -> World:
    """The world this process was started in, on ``device`` (None: the fastest there is).

    Raises:
        ValueError: when the launcher was asked for more processes than there are.
    """
    asked = requested_processes() or 1
    if asked == 1:
        device = device or best_device()
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # else another GPU would be waited for and measured
        return World(device=device)
    from accelerate import PartialState

    # The first process scores a set while the others wait for it at the next one.
    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=timedelta(hours=6))
    if state.num_processes != asked:
        raise ValueError(
            f"{asked} processes were asked for and {state.num_processes} runs: start them with "
            f"`torchrun --standalone --nproc_per_node {asked} -m ucgm ...`."
        )
    return World(state.process_index, state.num_processes, str(state.device))


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``, in this order."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class Progress:
    """One line with count, rate and remaining time, rewritten every second.

    Where the output is no terminal, a new line every half minute.

    Args:
        total: how many images there will be.
        label: what is counted, at the start of the line.
        silent: print nothing (other processes than the first).
    """

    def __init__(self, total: int, label: str = "", silent: bool = False) -> None:
        self.total, self.label, self.silent = total, label, silent
        self.done = 0
        self.start = time.perf_counter()
        self._shown = self.start

    def skip(self, count: int) -> None:
        """``count`` images are there already and need no work."""
        self.total -= count

    def add(self, count: int) -> None:
        """Count ``count`` more and print when it is time to."""
        self.done += count
        now = time.perf_counter()
        last = self.done >= self.total
        terminal = sys.stdout.isatty()
        if self.silent or (not last and now - self._shown < (1.0 if terminal else 30.0)):
            return
        self._shown = now
        rate = self.done / max(now - self.start, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        counts = f"{self.done:,}/{self.total:,} images"
        line = f"{self.label} {counts}, {rate:,.0f}/s, {left:,.0f} s left"
        if terminal:
            print(f"\r{line:<78}", end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)


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


def make_accelerator(tracker: str | None = None, run_dir: Path | None = None) -> "Accelerator":
    """The accelerator of this process.

    Args:
        tracker: beside metrics.jsonl.
        run_dir: where it keeps its files.

    Raises:
        ValueError: fewer processes run than the launcher was asked for.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

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
