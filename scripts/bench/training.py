"""A training step of ucgm over a hand-written PyTorch loop, in turns.

    python scripts/bench/training.py [--batch 64] [--pairs 4] [--out FILE.json]

*Ours* is ``ucgm.train`` itself, from one request of the loop for a batch to the next: latent
shards from disk, draw, terms, backward, optimizer, averages, a log line after every step.  *Plain*
is a loop as it is written by hand around the same network class (plain_loop.py), which for UCGM
makes every pass for every row, as published:

    flow_matching   the pass with gradient
    ucgm_multi      and the average without labels
    ucgm_few        and the teacher, and two passes at t -+ 0.005

Where ours asks for a batch, the plain loop makes its step, in a process of its own that otherwise
sleeps; which of the two goes first alternates, and the ratio is the median over pairs of steps.

Ours runs twice: with one pass per batch, and with ``train.accumulation`` cutting the same batch
into passes of 16 rows, which changes rounding only.  Seconds are wall time; the ratio of processor
time is printed beside it, because other programs disturb it less.
"""

import argparse
import contextlib
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from unittest import mock

import torch
from plain_loop import Elsewhere, TimeVariable

import ucgm.training.loop
from ucgm.data import Latents
from ucgm.data.latents.codec import Codec
from ucgm.data.latents.shard_format import write_shard
from ucgm.nn import DiTConfig
from ucgm.objective import preset
from ucgm.runs.config import Config
from ucgm.runs.settings import EMAConfig, OptimizerConfig, TrainConfig
from ucgm.training.ema import EMA
from ucgm.training.log import MetricsLogger

SHAPE, CLASSES = (4, 32, 32), 1000
ROWS = 16  # of a pass when the batch is cut
LIMITS = {"flow_matching": 1.0, "ucgm_multi": 0.9, "ucgm_few": 0.9}
ADAMW = OptimizerConfig(lr=2e-4, betas=(0.9, 0.95))
RADAM = OptimizerConfig(name="radam", lr=1e-4, betas=(0.9, 0.999))


class Done(Exception):
    """Enough pairs."""


def make_latents(folder, shards=2, rows=512):
    """Random latents in shards, as ``ucgm encode`` would leave them."""
    zeros, ones = (0.0,) * SHAPE[0], (1.0,) * SHAPE[0]
    folder.mkdir()
    Codec("none", "kl", "", 256, SHAPE, "sample", "none", zeros, ones).save(folder)
    generator = torch.Generator().manual_seed(0)
    records = []
    for number in range(shards):
        arrays = {
            "latents": torch.randn(rows, *SHAPE, generator=generator).half(),
            "labels": torch.randint(0, CLASSES, (rows,), generator=generator),
        }
        records.append(write_shard(folder / f"shard_{number:05d}.safetensors", arrays))
    facts = {"num_classes": CLASSES, "classes": [], "rows": shards * rows}
    (folder / "manifest.json").write_text(json.dumps(facts | {"shards": records, "skipped": []}))


def configuration(method, model, data, batch, accumulation, steps, init=None):
    """The same training as settings of ucgm."""
    few = method == "ucgm_few"
    return Config(
        model=model,
        objective=preset(method),
        data=Latents(str(data)),
        optimizer=RADAM if few else ADAMW,
        ema=EMAConfig(target_decay=0.999 if method == "ucgm_multi" else None),
        train=TrainConfig(
            steps=steps,
            global_batch=batch,
            accumulation=accumulation,
            grad_clip=0.1 if few else None,
            init=init,
            log_every=1,
            preview_every=10**9,
            checkpoint_every=10**9,
        ),
    )


class Turns:
    """Lets the plain loop step where the loop of ucgm asks for a batch, and times both."""

    def __init__(self, plain, pairs, accumulation):
        self.plain, self.pairs, self.accumulation = plain, pairs, accumulation
        self.ours, self.theirs = [], []
        self.parts, self.time_variable = [defaultdict(float)], None  # seconds by name, a step each

    def stream(self, real):
        """The batches, with the other loop's steps between the first micro-batches of two steps."""
        step = 0
        while True:
            if self.time_variable is not None:
                self.ours.append(self.time_variable.stop())
            # Pairs are (plain, ours), (ours, plain), (plain, ours), ...
            while len(self.theirs) < self.pairs and len(self.theirs) < step + (step % 2 == 0):
                self.theirs.append(self.plain.step())
            if step == self.pairs:
                raise Done
            self.parts.append(defaultdict(float))
            self.time_variable = TimeVariable()
            for _ in range(self.accumulation):
                with self.timed("data"):
                    batch = next(real)
                yield batch
            step += 1

    @contextlib.contextmanager
    def timed(self, name):
        """Add to the seconds of a part of this step."""
        start = time.perf_counter()
        yield
        self.parts[-1][name] += time.perf_counter() - start

    def watched(self, function, name):
        """A function of the engine, timed as a part of the step."""

        def call(*args, **kwargs):
            with self.timed(name):
                return function(*args, **kwargs)

        return call


LOGGING = [name for name in vars(MetricsLogger) if not name.startswith("_")]


def measure(method, plain, config, run_dir, pairs):
    """Times of ``pairs`` steps of both loops, the first pair left out."""
    turns = Turns(plain, pairs + 1, config.train.accumulation)
    batches = ucgm.training.loop.batches
    with contextlib.ExitStack() as patches:
        for cls, name, part in [
            *((MetricsLogger, n, "logging") for n in LOGGING),
            (EMA, "update", "averages"),
        ]:
            patches.enter_context(
                mock.patch.object(cls, name, turns.watched(getattr(cls, name), part))
            )
        stream = mock.patch(
            "ucgm.training.loop.batches", lambda *a, **k: turns.stream(batches(*a, **k))
        )
        patches.enter_context(stream)
        patches.enter_context(contextlib.suppress(Done))
        ucgm.training.loop.train(config, run_dir)
    ours, theirs = turns.ours[1:], turns.theirs[1:]
    pairs_of = [list(zip(o, p, strict=True)) for o, p in zip(ours, theirs, strict=True)]
    ratios = [[a / b for a, b in pair] for pair in pairs_of]
    total = sum(wall for wall, _ in ours)
    parts = turns.parts[2 : 2 + len(ours)]  # behind the start, and the pair that is left out
    shares = {n: sum(p[n] for p in parts) / total for n in ("logging", "averages", "data")}
    return {
        "preset": method,
        "accumulation": config.train.accumulation,
        "limit": LIMITS[method],
        "ours_s": statistics.median(wall for wall, _ in ours),
        "plain_s": statistics.median(wall for wall, _ in theirs),
        "ratio": statistics.median(wall for wall, _ in ratios),
        "ratio_cpu": statistics.median(cpu for _, cpu in ratios),
        "ratios": [round(wall, 4) for wall, _ in ratios],
        "ratios_cpu": [round(cpu, 4) for _, cpu in ratios],
        "shares": shares,
    }


HEADER = (
    f"{'preset':<15}{'passes of':>10}{'ours':>9}{'plain':>9}{'ratio':>8}{'lowest to highest':>20}"
)
HEADER += f"{'cpu':>8}{'limit':>7}{'logging':>10}{'averages':>10}{'data':>8}"


def line(row, batch):
    spread = f"{min(row['ratios']):.3f} to {max(row['ratios']):.3f}"
    return (
        f"{row['preset']:<15}{batch // row['accumulation']:>10}{row['ours_s']:>7.2f} s"
        f"{row['plain_s']:>7.2f} s{row['ratio']:>8.3f}{spread:>20}{row['ratio_cpu']:>8.3f}"
        f"{row['limit']:>7.1f}" + "".join(f"{100 * v:>8.2f} %" for v in row["shares"].values())
    )


def compare(options, folder):
    """Rows of the table, printed and written as they come."""
    data, model = folder / "latents", DiTConfig(size=options.size, family="dit")
    make_latents(data)
    # A run to start the few-step training from.
    first = configuration("flow_matching", model, data, 1, 1, 1)
    with contextlib.redirect_stdout(None), mock.patch("ucgm.training.loop.save_grid"):
        ucgm.training.loop.train(first, folder / "teacher")
    facts = {"model": f"DiT-{options.size}", "batch": options.batch, "pairs": options.pairs}
    facts |= {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "rows": []}
    print(f"DiT-{options.size}, batch {options.batch}, medians of {options.pairs} pairs\n{HEADER}")
    for method in options.presets:
        init = str(folder / "teacher") if method == "ucgm_few" else None
        for size in options.rows or [options.batch, ROWS]:
            cut, steps = options.batch // size, options.pairs + 3
            config = configuration(method, model, data, options.batch, cut, steps, init)
            run_dir = folder / f"{method}{cut}"
            with (
                Elsewhere(method, options.size, SHAPE, CLASSES, options.batch) as plain,
                contextlib.redirect_stdout(None),
            ):
                row = measure(method, plain, config, run_dir, options.pairs)
            facts["rows"].append(row)
            print(line(row, options.batch), flush=True)
            if options.out:
                Path(options.out).write_text(json.dumps(facts, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--size", default="S/2")
    parser.add_argument("--presets", nargs="+", default=list(LIMITS))
    parser.add_argument("--rows", nargs="+", type=int, help="of a pass; the batch, and 16")
    parser.add_argument("--out", help="where to write the numbers, JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        compare(options, Path(name))


if __name__ == "__main__":
    main()
