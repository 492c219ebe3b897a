"""Steps to a fixed FID with and without representation alignment.

    python scripts/train_classifier.py TRAIN TEST --side 16 --out TEACHER
    python scripts/train_classifier.py TRAIN TEST --side 16 --network attention --out JUDGE
    python scripts/repa.py TRAIN TEACHER JUDGE --side 16 [--steps 600] [--seeds 0 1 2]

TRAIN: a folder or zip of class folders.  The networks of one seed differ in the term alone.  The
fixed FID is that of the network without alignment after all steps.  With alignment a network is
trained anew for each share of the steps, so that every length has a schedule that ends with it.
FID is that of 10,000 samples to TRAIN in 8 steps without guidance, in the features of JUDGE, a
network of another kind than TEACHER, whose features are followed.  What is done is not done again;
the table goes to docs/results/repa.md.
"""

import argparse
import json
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
SHARES = (0.5, 0.7)
ROWS = {  # weights as published, the MLP narrower
    "none": (0.0, None),
    "repa": (0.5, {"projector": "mlp", "hidden": 256}),
    "irepa": (1.0, {"projector": "conv", "gamma": 0.6}),
}


class Study(NamedTuple):
    """Images, networks and lengths."""

    data: dict
    teacher: str
    judge: str
    reference: str
    size: str
    batch: int
    samples: int
    folder: Path


def fid_of(study, name, seed, steps):
    """FID of a row after a training of ``steps`` of its own; what is done is not done again."""
    folder = study.folder / name / f"{steps}_seed{seed}"
    settings = {"objective": {"preset": "multi_step"}, "model": {"size": study.size}}
    weight, alignment = ROWS[name]
    if weight:
        settings["objective"]["alignment"] = weight
        settings["alignment"] = alignment | {"extractor": OWN, "weights": study.teacher}
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


def main():
    """Train, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("teacher", help="weights by train_classifier.py")
    parser.add_argument("judge", help="the same, of the other kind of network")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--size", default="T/4")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the steps")
    parser.add_argument("--batch", type=int, default=128)
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
        *(asked.size, asked.batch, asked.samples, asked.out_dir),
    )
    shares = [*asked.shares, 1.0]
    head = ["row", "seed", *(f"{round(share * asked.steps):,} steps" for share in shares)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    print("\n".join(lines), flush=True)
    for seed in asked.seeds:
        for name in ("none", *(asked.rows or list(ROWS)[1:])):
            cells = [
                f"{fid_of(study, name, seed, round(share * asked.steps)):.3f}"
                if (share == 1.0) == (name == "none")
                else ""
                for share in shares
            ]
            lines.append(f"| {name} | {seed} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    write_part("repa.md", "steps", lines)


if __name__ == "__main__":
    main()
