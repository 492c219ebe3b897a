"""What distillation gives on the digits: the tables of docs/results/distil.md.

    python scripts/distil.py [--seeds 0 1 2] [--steps 400] [--out-dir runs/distil]

A teacher of four blocks is trained as by default; students of two blocks, from scratch or from two
of its blocks, learn from data, from the teacher, or from two teachers, all for the same number of
steps; the teacher's steps are halved from 16 to 1; and networks of four blocks are trained with
and without an exit head.  5,000 samples each; FID to the training scans in the feature space of
the shipped classifier.  What is done is not done again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tables import RESULTS, cell, write_part
from trained import train_row, train_section

from ucgm.evaluation.benchmark import benchmark
from ucgm.generation.command import open_run, samples_of_run
from ucgm.generation.samples import SamplingConfig
from ucgm.generation.writers import save_strip
from ucgm.objective import preset
from ucgm.runs.checkpoint import load_run
from ucgm.runtime.randomness import RowRandom

Settings = dict[str, Any]
NETWORK = {"size": "T/2"}
STUDENT = {**NETWORK, "depth": 2}
RAEV2 = {
    **dict(hidden_size=64, depth=4, num_heads=4, patch_size=2, exit_layer=1),
    **dict(head_width=96, head_depth=1, head_heads=4, class_tokens=2, time_tokens=2),
}
KEPT = {"keep_blocks": [0, 2]}
# Nine parts of the teacher, one of the data (TinyFusion, arXiv 2412.01199).
TAUGHT = {
    "preset": "multi_step",
    "field": "sources",
    "sources": [{"network": "teacher", "weight": 0.9}, {"network": "data", "weight": 0.1}],
}
EULER = ["--sampler.extrapolation", "0", "--sampler.grid.gap", "[0, 0]"]
INTERNAL = ["--guidance.kind", "internal", "--guidance.scale"]
# Internal guidance at all times, and then but for the last steps before the data.
SCALES = (1.0, 1.25, 1.5, 2.0, 2.5)
BASE_SCALES = (1.0, 1.78)  # off, and as RAEv2 is sampled
EARLY_SCALES, EARLY = (2.5,), "[0.2, 1.0]"


class Row(NamedTuple):
    """A training: its settings, what it starts from, and whom it learns from."""

    title: str
    settings: Mapping[str, Any]
    init: str | None = None
    teachers: int = 0
    steps: Sequence[int] = (4, 8)
    changes: Sequence[Sequence[str]] = ((),)


def halved(steps: int) -> Settings:
    """Two of the teacher's steps become one of ``steps`` (arXiv 2202.00512)."""
    return {
        "objective": {
            "preset": "multi_step",
            "time_law": "Uniform",
            "destination": {"class_path": "GridStep", "init_args": {"steps": steps}},
            "consistency_ratio": 0.5,
            "step_rule": "exact",
            "residual_network": "teacher",
            "field": "distillation",
            "enhancement_ratio": 1.0,
        },
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }


def sampled(scale: float) -> list[str]:
    """Internal guidance of a scale."""
    return [*INTERNAL, str(scale)]


GUIDED = [
    *(sampled(scale) for scale in SCALES),
    *([*sampled(scale), "--guidance.interval", EARLY] for scale in EARLY_SCALES),
]
MULTI = {"preset": "multi_step"}
ROWS: dict[str, Row] = {
    "teacher": Row(
        "teacher", {"objective": MULTI, "model": NETWORK}, None, 0, (1, 2, 4, 8), ((), EULER)
    ),
    "scratch": Row("from scratch, data", {"objective": MULTI, "model": STUDENT}),
    "scratch_taught": Row(
        "from scratch, teacher", {"objective": TAUGHT, "model": STUDENT}, teachers=1
    ),
    "kept": Row("two blocks kept, data", {"objective": MULTI, "train": KEPT}, "teacher"),
    "kept_taught": Row(
        "two blocks kept, teacher", {"objective": TAUGHT, "train": KEPT}, "teacher", 1
    ),
    "two_teachers": Row(
        "two blocks kept, mean of two teachers", {"objective": TAUGHT, "train": KEPT}, "teacher", 2
    ),
    "halved_8": Row("16 steps to 8", halved(8), "teacher", 0, (8,), (EULER,)),
    "halved_4": Row("8 steps to 4", halved(4), "halved_8", 0, (4,), (EULER,)),
    "halved_2": Row("4 steps to 2", halved(2), "halved_4", 0, (2,), (EULER,)),
    "halved_1": Row("2 steps to 1", halved(1), "halved_2", 0, (1,), (EULER,)),
    "plain": Row("no exit head", {"objective": MULTI, "model": NETWORK}, steps=(8,)),
    "exit": Row(
        "exit head after 1 block",
        {"objective": {**MULTI, "exit_head": 0.25}, "model": NETWORK},
        steps=(8,),
        changes=GUIDED,
    ),
    "exit_later": Row(
        "exit head after 2 blocks",
        {"objective": {**MULTI, "exit_head": 0.5}, "model": {**NETWORK, "exit_layer": 2}},
        steps=(8,),
        changes=GUIDED,
    ),
    "exit_on_data": Row(
        "exit head after 1 block, taught by data",
        {"objective": {**MULTI, "exit_head": 0.25, "exit_target": "field"}, "model": NETWORK},
        steps=(8,),
        changes=GUIDED,
    ),
    # RAEv2 (arXiv 2605.18324): the base output after 8 of 28 blocks has the loss of the whole
    # network, with weight 1, and every network says the data.
    "base": Row(
        "RAEv2, base output after 1 block",
        {
            "objective": {**MULTI, "exit_head": 1.0, "exit_target": "field"},
            "model": {"class_path": "RAEv2Config", "init_args": RAEV2},
        },
        steps=(8,),
        changes=[sampled(scale) for scale in BASE_SCALES],
    ),
}


class Study(NamedTuple):
    """Lengths, and where the runs are."""

    steps: int
    teacher_steps: int
    samples: int
    folder: Path


def run(study: Study, name: str, seed: int) -> Path:
    """Train and measure a row, and what it needs, unless that is done; its folder."""
    row, folder = ROWS[name], study.folder / name / f"seed{seed}"
    init = None if row.init is None else run(study, row.init, seed)
    others = [run(study, "teacher", (seed + k) % 3) for k in range(row.teachers)]
    steps = study.teacher_steps if name == "teacher" else study.steps
    section = train_section(steps, 128, seed, init) | {"teacher": [str(other) for other in others]}
    train_row(row.settings, {"train": section}, folder)
    for number, changes in enumerate(row.changes):
        report = folder / f"report{number}"
        if not (report / "benchmark.json").exists():
            benchmark(
                str(folder),
                list(row.steps),
                num_images=study.samples,
                settings=SamplingConfig(seed=seed),
                out_dir=report,
                keep_features=False,
                changes=list(changes),
            )
    return folder


def scores(study: Study, name: str, number: int, steps: int, key: str = "fid") -> list[float]:
    """A score of every seed."""
    found = []
    for path in sorted((study.folder / name).glob(f"seed*/report{number}/benchmark.json")):
        rows = json.loads(path.read_text())["rows"]
        found += [row["scores"][key] for row in rows if row["steps"] == steps]
    return found


def ratios(one: list[float], other: list[float]) -> str:
    """Quotients of the seeds, such as 0.51, 0.48, 0.55."""
    return ", ".join(f"{a / b:.2f}" for a, b in zip(one, other, strict=True))


@torch.no_grad()
def loss_of(folder: Path, draws: int = 8) -> float:
    """Flow-matching loss of the average on the training scans, with labels and fixed noise."""
    found = load_run(folder)
    data, objective = found.config.data.open(), preset("multi_step", label_dropout=0.0)
    stored, y = data.read(torch.arange(len(data)))
    x, total = data.prepare(stored), 0.0
    for k in range(draws):
        keys = RowRandom.for_rows(0, k, torch.arange(len(x)))
        total += float(objective.terms(found.network, objective.draw(x, y, 10, keys)).loss)
    return total / draws


def students(study: Study) -> list[str]:
    """Lines of the smaller students."""
    lines = ["| 2 blocks | FID, 4 calls | FID, 8 calls | accuracy, 8 | over scratch, 8 |"]
    lines.append("|---|---:|---:|---:|---:|")
    base = scores(study, "scratch", 0, 8)
    for name in ("teacher", "scratch", "scratch_taught", "kept", "kept_taught", "two_teachers"):
        fid = [scores(study, name, 0, n) for n in (4, 8)]
        right = scores(study, name, 0, 8, "accuracy")
        over = "" if name in ("teacher", "scratch") else ratios(fid[1], base)
        cells = [*map(cell, fid), f"{min(right):.3f}", over]
        lines.append(f"| {ROWS[name].title} | {' | '.join(cells)} |")
    return lines


def progressive(study: Study) -> list[str]:
    """Lines of the halved steps."""
    lines = [
        "| steps (Euler) | FID of the teacher | halved | accuracy, halved |",
        "|---:|---:|---:|---:|",
    ]
    for n in (8, 4, 2, 1):
        name = f"halved_{n}"
        right = scores(study, name, 0, n, "accuracy")
        cells = [cell(scores(study, "teacher", 1, n)), cell(scores(study, name, 0, n))]
        lines.append(f"| {n} | {' | '.join(cells)} | {min(right):.3f} |")
    return lines


def exits(study: Study) -> list[str]:
    """Lines of internal guidance."""
    head = [f"scale {scale:g}" for scale in SCALES]
    head += [f"scale {scale:g}, t in {EARLY}" for scale in EARLY_SCALES]
    lines = [f"| FID, 8 calls | {' | '.join(head)} | loss over that without exit |"]
    lines.append("|---|" + "---:|" * (len(head) + 1))
    seeds = sorted((study.folder / "plain").glob("seed*"))
    base = [loss_of(folder) for folder in seeds]
    lines.append(
        f"| {ROWS['plain'].title} | {cell(scores(study, 'plain', 0, 8))} |" + " |" * len(head)
    )
    names = [
        name
        for name in ("exit", "exit_later", "exit_on_data")
        if len(scores(study, name, 0, 8)) == len(seeds)
    ]
    for name in names:
        cells = [cell(scores(study, name, k, 8)) for k in range(len(GUIDED))]
        own = [loss_of(study.folder / name / folder.name) for folder in seeds]
        over = ", ".join(f"{a / b:.4f}" for a, b in zip(own, base, strict=True))
        lines.append(f"| {ROWS[name].title} | {' | '.join(cells)} | {over} |")
    for name in names:
        unguided = scores(study, name, 0, 8)
        for k, title in enumerate(head[1:], 1):
            over = ratios(scores(study, name, k, 8), unguided)
            lines.append(f"- {ROWS[name].title}, {title} over unguided: {over}")
    at = next(i for i, line in enumerate(lines) if line.startswith("- "))
    return [*lines[:at], "", *lines[at:]]


def bases(study: Study) -> list[str]:
    """Lines of internal guidance by RAEv2's base output."""
    off, on = (f"scale {scale:g}" for scale in BASE_SCALES)
    lines = [f"| FID, 8 steps | {off} | {on} | over {off} | network calls a step, {on} |"]
    lines.append("|---|" + "---:|" * 4)
    fid = [scores(study, "base", k, 8) for k in (0, 1)]
    found = sorted((study.folder / "base").glob("seed*/report1/benchmark.json"))
    rows = [row for path in found for row in json.loads(path.read_text())["rows"]]
    calls = [f"{row['nfe'] / row['steps']:.2f}" for row in rows]
    cells = [*map(cell, fid), ratios(fid[1], fid[0]), ", ".join(calls)]
    return [*lines, f"| {ROWS['base'].title} | {' | '.join(cells)} |"]


def pictures(study: Study) -> None:
    """Samples of seed 0 with the same noise and classes, one model in a row."""
    shown = {
        "distil_students": [(name, []) for name in ("teacher", "scratch", "kept", "kept_taught")],
        "distil_exits": [("exit", sampled(scale)) for scale in SCALES],
    }
    for title, rows in shown.items():
        strips = []
        for name, changes in rows:
            found = open_run(str(study.folder / name / "seed0"), None, "ema", "cpu", changes)
            samples = samples_of_run(found, SamplingConfig(seed=7), 8)
            strips.append(samples.images(torch.arange(20)))
        save_strip(strips, RESULTS / f"{title}.png")


def main() -> None:
    """Train, measure, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--out-dir", type=Path, default=Path("runs/distil"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(asked.steps, asked.teacher_steps, asked.samples, asked.out_dir)
    for name in asked.rows or ROWS:
        for seed in asked.seeds:
            run(study, name, seed)
    parts = [] if asked.rows else [students, progressive, exits]
    parts += [bases] if "base" in (asked.rows or ROWS) else []
    for part in parts:
        lines = part(study)
        print("\n".join(lines), flush=True)
        write_part("distil.md", part.__name__, lines)
    if not asked.rows:
        pictures(study)


if __name__ == "__main__":
    main()
