"""Steps to a fixed FID with and without representation alignment.

    python scripts/train_classifier.py TRAIN TEST --side 16 --out TEACHER
    python scripts/train_classifier.py TRAIN TEST --side 16 --network attention --out JUDGE
    python scripts/repa.py TRAIN TEACHER JUDGE --side 16 [--steps 1500] [--seeds 0 1 2]

TRAIN: a folder or zip of class folders.  The networks of one seed differ in the term alone.  A row
is trained anew for each share of the steps, so that every length has a schedule that ends with it;
its FID is that of 10,000 samples to TRAIN in 8 steps without guidance, in the features of JUDGE,
a network of another kind than TEACHER, whose features are followed.  The fixed FID is that of the
network without alignment after all steps; the steps to it lie on a straight line in log FID between
two lengths.  What is done is not done again; the table goes to docs/results/repa.md.
"""

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from tables import write_part
from trained import train_row, train_section

from ucgm.evaluation.benchmark import benchmark
from ucgm.evaluation.evaluate import make_reference
from ucgm.evaluation.scoring import MetricConfig
from ucgm.generation.samples import SamplingConfig
from ucgm.runs.config import allow_module

OWN = "scripts.train_classifier:build"
SHARES = (0.4, 0.7, 1.0)
ROWS = {
    "none": None,
    "repa": {"projector": "mlp", "hidden": 256},
    "irepa": {"projector": "conv", "gamma": 0.6},
}


class Study(NamedTuple):
    """Images, networks and lengths."""

    data: dict
    teacher: str
    judge: str
    reference: str
    size: str
    batch: int
    weight: float
    samples: int
    folder: Path


def fid_of(study, name, seed, steps):
    """FID of a row after a training of ``steps`` of its own; what is done is not done again."""
    folder = study.folder / name / f"{steps}_seed{seed}"
    settings = {"objective": {"preset": "multi_step"}, "model": {"size": study.size}}
    if ROWS[name] is not None:
        settings["objective"]["alignment"] = study.weight
        settings["alignment"] = ROWS[name] | {"extractor": OWN, "weights": study.teacher}
    section = train_section(steps, study.batch, seed, None)
    train_row(settings, {"train": section, "data": study.data}, folder)
    out = folder / "report"
    if not (out / "benchmark.json").exists():
        benchmark(
            str(folder),
            [8],
            study.samples,
            settings=SamplingConfig(seed=seed),
            metrics_config=MetricConfig(
                ("fid", "accuracy"), (OWN,), (study.judge,), (study.reference,)
            ),
            out_dir=out,
            keep_features=False,
        )
    return json.loads((out / "benchmark.json").read_text())["rows"][0]["scores"]["fid"]


def reached(points, fid):
    """Steps after which ``points`` of (steps, FID) have ``fid``; inf where they never do."""
    if points[0][1] <= fid:
        return points[0][0]
    for (before, high), (after, low) in pairwise(points):
        if low <= fid:
            share = (math.log(high) - math.log(fid)) / (math.log(high) - math.log(low))
            return before + share * (after - before)
    return math.inf


def main():
    """Train, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("teacher", help="weights by train_classifier.py")
    parser.add_argument("judge", help="the same, of the other kind of network")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--size", default="T/4")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--weight", type=float, default=0.5, help="of the term")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rows", nargs="+", choices=[name for name in ROWS if name != "none"])
    parser.add_argument("--out-dir", type=Path, default=Path("runs/repa"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    allow_module("scripts.train_classifier")
    teacher, judge = (str(Path(path).resolve()) for path in (asked.teacher, asked.judge))
    reference = asked.out_dir / "reference.npz"
    if not reference.exists():
        asked.out_dir.mkdir(parents=True, exist_ok=True)
        make_reference(asked.train, reference, (OWN,), (judge,), asked.side)
    study = Study(
        {"class_path": "Images", "path": asked.train, "size": asked.side},
        *(teacher, judge, str(reference)),
        *(asked.size, asked.batch, asked.weight, asked.samples, asked.out_dir),
    )
    lengths = [round(share * asked.steps) for share in SHARES]
    head = ["row", "seed", *(f"{steps:,} steps" for steps in lengths), "steps to it", "of none"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    print("\n".join(lines), flush=True)
    for seed in asked.seeds:
        fixed = fid_of(study, "none", seed, asked.steps)
        for name in ("none", *(asked.rows or list(ROWS)[1:])):
            points = [(steps, fid_of(study, name, seed, steps)) for steps in lengths]
            to_it = reached(points, fixed)
            cells = [f"{fid:.3f}" for _, fid in points]
            cells += [f"{to_it:,.0f}", f"{to_it / asked.steps:.2f}"]
            lines.append(f"| {name} | {seed} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if not asked.rows:
        write_part("repa.md", "steps", lines)


if __name__ == "__main__":
    main()
