"""Kill a training at random moments, continue it each time, and count what is lost.

    python scripts/kill_training.py --kills 100 --out docs/results/kill_training.txt

Each life of the training is a process of its own, ended by SIGKILL after a random time: while it
starts, while it steps, while its checkpoint is written, renamed or removed.  After every kill

    every checkpoint under its final name, and the one that `latest` names, has the right digests
    no checkpoint is older than the newest before the kill

and when a training has come to its end, its last checkpoint (network, averages, optimizer) and the
losses of all steps equal those of a training that was never interrupted, bit for bit.  Then the
next one begins, until there were enough kills.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import accelerate  # noqa: F401  imported before the first fork
import torch
from killing import end, fork, refuse_threads

from ucgm.data import Digits
from ucgm.nn import DiTConfig
from ucgm.objective import preset
from ucgm.runs.checkpoint import verify
from ucgm.runs.config import Config
from ucgm.runs.saving import CHECKPOINTS
from ucgm.runs.settings import EMAConfig, OptimizerConfig, TrainConfig
from ucgm.sampler import Sampler
from ucgm.training.loop import train
from ucgm.training.throughput import count_work

SETTINGS = Config(
    model=DiTConfig(size="T/4"),
    objective=preset("ucgm_multi"),
    data=Digits(),
    optimizer=OptimizerConfig(lr=1e-3),
    ema=EMAConfig(decay=0.99, target_decay=0.9, tracked=(0.1,), snapshot_every=20),
    train=TrainConfig(
        steps=300,
        global_batch=8,
        log_every=1,
        preview_every=50,
        checkpoint_every=2,
        keep_checkpoints=2,
        milestone_every=100,
    ),
    sampler=Sampler(steps=1),
)


def warm_up() -> None:
    """Import what a training imports late; a fork takes along what is there, but no thread."""
    torch.set_num_threads(1)
    data = SETTINGS.data.open()
    count_work(SETTINGS.model, data.shape, data.num_classes, SETTINGS.objective)
    refuse_threads()


def straight_run(run_dir: Path) -> float:
    """Train without interruption; seconds until the first checkpoint was there."""
    began, first = time.monotonic(), None
    child = start(run_dir)
    while True:
        if first is None and (run_dir / "latest").exists():
            first = time.monotonic() - began
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    if status or first is None:
        sys.exit(run_dir.with_suffix(".log").read_text())
    return first


def start(run_dir: Path) -> int:
    """The process of one life of the training."""
    return fork(lambda: train(SETTINGS, run_dir), run_dir.with_suffix(".log"))


def newest_step(run_dir: Path) -> int:
    """The newest checkpoint's step, 0 without one; raises ValueError for one that is damaged."""
    folders = sorted((run_dir / CHECKPOINTS).glob("step_*"))
    steps = [verify(folder)["step"] for folder in folders]
    latest = run_dir / "latest"
    if latest.exists():
        verify(run_dir / CHECKPOINTS / latest.read_text().strip())
    return max(steps, default=0)


def left_behind(run_dir: Path) -> str:
    """What the kill interrupted, by what it left."""
    if not (run_dir / CHECKPOINTS).exists():
        return "before the first checkpoint"
    names = [path.name for path in (run_dir / CHECKPOINTS).iterdir()]
    if any(name.startswith(".tmp") for name in names):
        return "a checkpoint being written"
    if any(name.startswith(".old") for name in names):
        return "a checkpoint being removed"
    return "a step, or the start"


def outcome(run_dir: Path) -> dict:
    """What two trainings are compared by: digests of the last checkpoint, and all losses."""
    folder = run_dir / CHECKPOINTS / f"step_{SETTINGS.train.steps:07d}"
    digests = {name: facts["sha256"] for name, facts in verify(folder)["files"].items()}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = sorted(path.name for path in (run_dir / CHECKPOINTS).glob("step_*"))
    return {"digests": digests, "losses": [(x["step"], x["loss"]) for x in lines], "kept": kept}


def main() -> None:
    """Kill, continue, compare, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="longest life after the first checkpoint"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warm_up()
    began, moments, rng = time.time(), Counter(), random.Random(options.seed)
    kills = trainings = 0
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder) / "straight"
        longest = straight_run(straight) + options.seconds
        expected = outcome(straight)
        while kills < options.kills:
            run, seen = Path(folder) / "killed", 0
            while True:
                delay = rng.uniform(0.0, longest) if kills < options.kills else None
                code = end(start(run), delay)
                if code == 0:
                    break
                if code != -signal.SIGKILL:
                    sys.exit(
                        f"exit code {code} after {kills} kills\n"
                        + run.with_suffix(".log").read_text()[-3000:]
                    )
                kills += 1
                moments[left_behind(run)] += 1
                newest = newest_step(run)
                if newest < seen:
                    sys.exit(f"kill {kills} lost the checkpoint of step {seen}")
                seen = newest
            if outcome(run) != expected:
                sys.exit(f"the training that ended after {kills} kills differs")
            trainings += 1
            shutil.rmtree(run)
    report = [
        f"{kills} kills (SIGKILL), {trainings} trainings of {SETTINGS.train.steps} steps to their "
        f"end, a checkpoint every {SETTINGS.train.checkpoint_every} steps.",
        "Corrupt checkpoints: 0.  Lost checkpoints: 0.",
        f"Trainings equal bit for bit to the uninterrupted one: {trainings} of {trainings} "
        f"({', '.join(sorted(expected['digests']))}; losses of all steps).",
        "The kills interrupted:",
        *(f"  {count:4d}  {moment}" for moment, count in moments.most_common()),
        f"Seed {options.seed}, lives of 0 to {longest:.1f} s, {time.time() - began:.0f} s in "
        f"all; torch {torch.__version__}, 1 thread.",
    ]
    print("\n".join(report))
    if options.out:
        options.out.write_text("\n".join(["python " + " ".join(sys.argv), "", *report, ""]))


if __name__ == "__main__":
    main()
