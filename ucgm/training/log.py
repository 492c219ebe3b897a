"""What a training writes down: metrics.jsonl, the line on the screen, the tracker.

Values are summed on the device and read once per period, or after ten seconds of silence, so the
step does not wait for a number; a number that is not finite is left out of its mean, and the step
that had it is counted as skipped.

On a resume the lines behind the checkpoint are cut off, and the file is the record of one run.

The loss over the times is a row of means over rows of the batch, one per tenth of [0, 1], because
one number hides at which noise level a network learns:

    loss_by_time[b] = mean of the unweighted loss of the rows with b <= 10 t < b + 1
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from ucgm.runs.settings import TrainConfig
from ucgm.runtime.files import write_atomic
from ucgm.runtime.reading import reading
from ucgm.training.throughput import Work

BINS = 10
HEARTBEAT = 10.0
_DIGITS = 8  # more than float32 has

T = TypeVar("T")


class MetricsLogger:
    """The log of one run on one process.

    Args:
        path: metrics.jsonl.
        accelerator: reduces over processes, and owns the tracker if there is one.
        train: length and batch of the run.
        work: of one sample.
        peak: floating-point operations per second of one process.
    """

    def __init__(
        self, path: Path, accelerator: Accelerator, train: TrainConfig, work: Work, peak: float
    ) -> None:
        self.path, self.accelerator = path, accelerator
        self.train, self.work, self.peak = train, work, peak
        self._begin()

    def beat(self, step: int) -> None:
        """Say how many steps are done, and this process's mean loss since the last line of the log,
        when nothing was printed for ten seconds.
        """
        now = time.perf_counter()
        if self.accelerator.is_main_process and now - self.spoke > HEARTBEAT:
            self.spoke = now
            total, count = (float(value) for value in self.sums.get("loss", (0.0, 0.0)))
            loss = f"  loss {total / count:.4f}" if count else ""
            print(f"step {step}/{self.train.steps}{loss}  ...", flush=True)

    def _begin(self) -> None:
        self.spoke = time.perf_counter()
        # Set by the first batch: what happens between a line and that is no part of a step.
        self.start: float | None = None
        self.waited = 0.0
        self.steps = 0
        # name -> (sum, count), on the device
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def rewind(self, step: int) -> None:
        """Drop the lines of later steps, and a last line that a crash cut short."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        with reading(self.path):
            lines = self.path.read_text(errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        write_atomic(self.path, "".join(line + "\n" for line in kept))

    def waiting(self, stream: Iterator[T]) -> Iterator[T]:
        """The same batches; the time until each is there counts as waiting for data."""
        while True:
            now = time.perf_counter()
            self.start = now if self.start is None else self.start
            batch = next(stream)
            self.waited += time.perf_counter() - now
            yield batch

    def add_step(self, **values: Tensor) -> None:
        """An optimizer step is done: add its device scalars to the means of this period."""
        self.steps += 1
        for name, value in values.items():
            good = value.isfinite()
            self._sum(name, torch.where(good, value, 0.0), good)

    def add_rows(self, t: Tensor, losses: Tensor) -> None:
        """Add the ``losses`` (B,) of rows at times ``t`` (B,) to the loss over the times."""
        bins = (t * BINS).long().clamp(0, BINS - 1)
        own = bins == torch.arange(BINS, device=t.device)[:, None]
        own = own & losses.isfinite()
        self._sum("loss_by_time", torch.where(own, losses.float(), 0.0).sum(1), own.sum(1))

    def _sum(self, name: str, value: Tensor, count: Tensor) -> None:
        old, number = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (old + value.float(), number + count.float())

    def _means(self) -> dict[str, Any]:
        """Means over the period and all processes; None where there was nothing finite."""
        flat = [v.reshape(-1) for pair in self.sums.values() for v in pair]
        reduced = self.accelerator.reduce(torch.cat(flat), "sum")
        assert isinstance(reduced, Tensor)
        numbers, found = iter(reduced.tolist()), {}
        for name, (value, _) in self.sums.items():
            sums, counts = ([next(numbers) for _ in range(value.numel())] for _ in range(2))
            means = [_round(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
            found[name] = means if value.ndim else means[0]
        return dict(sorted(found.items(), key=lambda pair: isinstance(pair[1], list)))

    def write(self, step: int, lr: float, skipped: int, **more: float | None) -> None:
        """End the period after ``step`` optimizer steps: one line; all processes must call this.

        ``lr`` is that of the last step, ``skipped`` counts the steps that were not taken so far,
        and ``more`` is what else belongs on the line.
        """
        means = self._means()
        assert self.start is not None, "a period has at least one batch"
        seconds = time.perf_counter() - self.start
        rate = self.steps * self.train.global_batch / seconds
        flops = rate * self.work.flops / self.accelerator.num_processes
        line: dict[str, Any] = {"step": step} | means | {"lr": lr}
        line |= {name: v if v is None else _round(v, 4) for name, v in more.items()}
        line |= {
            "skipped": skipped,
            "images_per_second": _round(rate, 5),
            "tflops": _round(flops / 1e12, 4),
            "of_peak": _round(flops / self.peak, 4),
            "data_wait": _round(self.waited / seconds, 4),
        }
        remaining = (self.train.steps - step) * seconds / self.steps
        self._begin()
        if not self.accelerator.is_main_process:
            return
        line = {k: v for k, v in line.items() if v is not None}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.accelerator.log(_scalars(line), step=step)
        shown = "  ".join(f"{k} {v:.4f}" for k, v in means.items() if isinstance(v, float))
        print(
            f"step {step}/{self.train.steps}  {shown}  lr {lr:.2e}  {rate:,.0f} images/s "
            f"({100 * flops / self.peak:.0f} % of peak)  "
            f"ETA {int(remaining // 60)}:{int(remaining % 60):02d}"
            + (f"  skipped {skipped}" if skipped else ""),
            flush=True,
        )


def half_life(weight: float) -> float | None:
    """Steps in which the share of old weights in an average halves, ln 2 / -ln(1 - weight).

    ``weight`` is that of the newest weights in the next average; 0 steps for an average that is
    them, None for one that never changes.
    """
    if weight <= 0.0:
        return None
    return 0.0 if weight >= 1.0 else -math.log(2.0) / math.log1p(-weight)


def _round(value: float, digits: int = _DIGITS) -> float:
    """``value`` with so many significant digits, which keeps a line short."""
    return float(f"{value:.{digits}g}")


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line for a tracker: a row of numbers becomes one name for each."""
    flat: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, list):
            named = {f"{name}/{b / BINS:.1f}": v for b, v in enumerate(value) if v is not None}
            flat |= named
        elif name != "step":
            flat[name] = value
    return flat


def _step_of(line: str) -> float:
    """Step of a log line; a line that is not whole counts as later than any step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return float("inf")
