"""Processes of one job, and the progress that the first of them shows.

Started by ``torchrun`` or ``accelerate launch``, a process joins its group (gloo on CPUs, NCCL on
GPUs); started alone, it is the whole job.  Work is shared in strides (item k goes to process
k mod size), so that no process waits for another before the end.

A training has its processes through ``accelerate`` (:func:`make_accelerator`), which wraps a
model's forward in autocast when it knows the precision.  That would also wrap the passes that must
stay in float32, so it is told "no", and the step opens autocast itself.
"""

import contextlib
import itertools
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch
import torch.distributed
from tqdm import tqdm

from ucgm.runtime.files import ALONE, sole_writer
from ucgm.runtime.precision import precision

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The ``size`` processes of one job; this one is ``rank``, on a device such as ``cuda:1``."""

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

    @contextlib.contextmanager
    def writes(self, path: Path, work: str, how: int = ALONE) -> Iterator[None]:
        """Be the one job that writes ``path``, to its end: the first process holds the lock.

        A group of processes ends with the block, when all have come there: it is the last thing a
        command does.  See ``files.sole_writer``.
        """
        with sole_writer(path, work, how) if self.first else contextlib.nullcontext():
            yield
            self.wait()
        if self.size > 1:
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            torch.distributed.barrier()


def requested_processes() -> int | None:
    """The number of processes the launcher was asked for; None when nobody asked.

    ``accelerate launch --cpu --num_processes 2`` starts one process and says nothing; its command
    line, in the parent process, is the only trace of the request.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent else []
    except (OSError, psutil.Error):
        return None
    if not any("accelerate" in word for word in words[:3]):
        return None
    for word, following in itertools.pairwise([*words, ""]):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            return int(value or following)
    return None


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
    _check_number(asked, state.num_processes, str(state.device))
    return World(state.process_index, state.num_processes, str(state.device))


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``, in this order."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def make_accelerator(tracker: str | None = None, run_dir: Path | None = None) -> "Accelerator":
    """The accelerator of this process; a ``tracker`` keeps its files in ``run_dir``.

    Raises:
        ValueError: fewer processes run than the launcher was asked for.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    asked = requested_processes()
    precision()  # refuses one that is not supported
    accelerator = Accelerator(
        mixed_precision="no",
        # Without a GPU accelerate starts single processes unless it is told to use the CPU.
        cpu=(asked or 1) > 1 and not torch.cuda.is_available(),
        log_with=tracker,
        project_dir=run_dir,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(hours=1)),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )
    running = accelerator.num_processes
    _check_number(asked or running, running, str(accelerator.device))
    return accelerator


def _check_number(asked: int, running: int, device: str) -> None:
    """Refuse fewer processes than were asked for; warn of more than the cores that they run on."""
    if asked != running:
        raise ValueError(
            f"{asked} processes were asked for and {running} runs: start them with "
            f"`torchrun --standalone --nproc_per_node {asked} -m ucgm ...`"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", running))
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone knows it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if device.startswith("cpu") and here > cores:
        warnings.warn(
            f"{here} processes share {cores} CPU cores, and no GPU is used: start one for each "
            "GPU, or at most one for each core",
            stacklevel=3,
        )


class _Lines(tqdm):
    """Every state on a line of its own: for an output that is no terminal."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """What prints a state."""
        return lambda text: print(text, file=file, flush=True)

    def close(self) -> None:
        """Show the last state."""
        if not self.disable and self.n > self.last_print_n:
            self.display()
        self.disable = True


class Progress:
    """Count, rate and remaining time of images or other units, renewed every second.

    Where the output is no terminal, a new line every half minute.

    Args:
        total: how many images this process counts.
        label: what is counted, at the start of the line.
        silent: print nothing (other processes than the first).
        whole: how many images all processes make together, each in step with this one.
        unit: what they are, where they are not images.
    """

    def __init__(
        self,
        total: int,
        label: str = "",
        silent: bool = False,
        whole: int | None = None,
        unit: str = "images",
    ) -> None:
        self._left, self._factor = total, (whole or total) / max(1, total)
        terminal = sys.stdout.isatty()
        self._bar = (tqdm if terminal else _Lines)(
            total=whole or total,
            desc=label,
            disable=silent,
            file=sys.stdout,
            position=0,
            miniters=1,
            mininterval=1.0 if terminal else 30.0,
            delay=0.0 if terminal else 30.0,
            ncols=shutil.get_terminal_size().columns,  # some terminals report 0
            smoothing=0,  # the mean rate since the start
            unit="",
            bar_format="{desc} {n:,}/{total:,} " + unit + ", {rate_noinv_fmt}, {remaining} left",
        )

    def skip(self, count: int) -> None:
        """``count`` images are there already and need no work."""
        self._left -= count
        self._bar.total = self._bar.n + round(self._left * self._factor)

    def add(self, count: int) -> None:
        """Count ``count`` more and show it when it is time to."""
        self._left -= count
        self._bar.update(self._bar.total - round(self._left * self._factor) - self._bar.n)
        if self._left <= 0:
            self._bar.close()
