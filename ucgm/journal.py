"""What a training writes down: metrics.jsonl, the line on the screen, the tracker.

Values are summed on the device and read once per period, so the step never waits for a number.
On a resume the lines behind the checkpoint are cut off, and the file is the record of one run.
"""

import json
import os
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor


class Journal:
    """The log of one run on one process.

    Args:
        path: metrics.jsonl.
        accelerator: reduces over processes, and owns the tracker if there is one.
        total_steps: length of the run, for the remaining time.
        global_batch: samples per step, for the rate.
    """

    def __init__(
        self, path: Path, accelerator: Accelerator, total_steps: int, global_batch: int
    ) -> None:
        self.path = path
        self.accelerator = accelerator
        self.total_steps = total_steps
        self.global_batch = global_batch
        self._begin()

    def _begin(self) -> None:
        self.start = time.perf_counter()
        self.steps = 0
        self.sums: dict[str, Tensor] = {}

    def rewind(self, step: int) -> None:
        """Drop the lines of later steps, and a last line that a crash cut short."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, self.path)

    def add(self, **values: Tensor) -> None:
        """Add device scalars to the sums of this period."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def count_step(self) -> None:
        """One optimizer step is done."""
        self.steps += 1

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        reduced = self.accelerator.reduce(values, "mean")
        assert isinstance(reduced, Tensor)
        return reduced

    def write(self, step: int, lr: float, skipped: int) -> None:
        """End the period: one line of means over its steps; all processes must call this."""
        seconds = time.perf_counter() - self.start
        names = sorted(self.sums)
        sums = torch.stack([self.sums[n].float() for n in names])
        means: list[float] = (self._mean_over_processes(sums) / max(self.steps, 1)).tolist()
        line = {"step": step} | dict(zip(names, means, strict=True))
        rate = self.steps * self.global_batch / seconds
        line |= {"lr": lr, "images_per_second": rate, "skipped": skipped}
        remaining = (self.total_steps - step) * seconds / max(self.steps, 1)
        self._begin()
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.accelerator.log(line, step=step)
        values = "  ".join(f"{name} {value:.4f}" for name, value in zip(names, means, strict=True))
        print(
            f"step {step}/{self.total_steps}  {values}  lr {lr:.2e}  {rate:,.0f} images/s  "
            f"ETA {int(remaining // 60)}:{int(remaining % 60):02d}"
            + (f"  skipped {skipped}" if skipped else ""),
            flush=True,
        )


def _step_of(line: str) -> float:
    """Step of a log line; a line that is not whole counts as later than any step."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")
