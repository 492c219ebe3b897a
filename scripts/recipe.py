"""What the defaults are worth, and which part of them: a study with one change at a time.

    python scripts/recipe.py digits [ROW ...] [--second FILE]
    python scripts/recipe.py NAME [ROW ...] --data TRAIN TEST --side 28 --features FILE ...
    python scripts/recipe.py NAME --search --data TRAIN TEST --seeds 0 ...

The rows of ROWS, by default those that are compared, with --search all of SEARCH; all under one
NAME have the same images, network, batch and steps.  FILE is the
weights of a classifier by scripts/train_classifier.py; FID is in its feature space, 10,000 samples
to the training images.  The second classifier sees the same samples.  The noise floor is the FID of
as many draws from the training images themselves, and the excess of a row is what it has above
that.  The tables go to the part NAME of docs/results/recipe.md; running again continues what is
unfinished.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tables import cell, write_part
from trained import train_row, train_section

from ucgm.evaluation.benchmark import benchmark
from ucgm.evaluation.extractors import Extractor, open_extractor
from ucgm.evaluation.image_sets import DatasetImages
from ucgm.evaluation.metrics import frechet_distance, moments_of
from ucgm.evaluation.references import statistics_of
from ucgm.evaluation.scoring import MetricConfig
from ucgm.generation.samples import SamplingConfig
from ucgm.runs.config import read_config

Settings = dict[str, Any]
MULTI_STEPS, FEW_STEPS = (1, 2, 4, 8, 16), (1, 2, 4, 8)
OWN = "scripts.train_classifier:build"


class Row(NamedTuple):
    """Settings of a training, and the row whose run it starts from."""

    settings: Settings
    init: str | None = None


def multi(**changes: Settings) -> Row:
    """Our default for many steps, with changes by section."""
    return Row({"objective": {"preset": "multi_step", **changes.pop("objective", {})}, **changes})


def few(**changes: Settings) -> Row:
    """Our default for few steps, with changes by section."""
    objective = {"preset": "few_step", **changes.pop("objective", {})}
    return Row({"objective": objective, **changes}, "multi_step")


# What a good user of the published presets typed before this study.
PLAIN = {
    "objective": {"preset": "flow_matching", "time_law": {"class_path": "LogitNormal"}},
    "optimizer": {"lr": 2e-3, "betas": [0.9, 0.95], "warmup_steps": 100, "schedule": "cosine"},
    "ema": {"decay": 0.999},
    "sampler": {"steps": 8, "grid": {"gap": [0.0, 0.0]}},
}
TUNED = {
    "objective": {
        "preset": "ucgm_few",
        "enhancement_ratio": 1.0,
        "enhancement_interval": [0.0, 1.0],
    },
    "optimizer": {"lr": 3e-4, "schedule": "constant", "warmup_steps": 0},
    "train": {"grad_clip": 0.1},
    "ema": {"decay": 0.99},
}


def pair(equal: float, to_data: float) -> Settings:
    """The law of the second time: shares of the rows with s = t and with s = 0."""
    return {"class_path": "SortedPair", "init_args": {"equal": equal, "to_data": to_data}}


def law(mean: float, std: float) -> Settings:
    """The law of the training times."""
    return {"time_law": {"class_path": "LogitNormal", "init_args": {"mean": mean, "std": std}}}


ROWS: dict[str, Row] = {
    "flow_matching": Row(PLAIN),
    "multi_step": multi(),
    "ucgm_few": Row(TUNED, "flow_matching"),
    "few_step": few(),
    # The time of 500 steps of ucgm_few: a step takes 2.1 times as long (scripts/bench/presets.py).
    "few_step_240": few(train={"steps": 240}),
    # What multi_step is where images are no drawings, which decide for themselves.
    "photographs": multi(objective=law(0.0, 1.0), model={"convention": "ucgm"}),
    # One change of multi_step each.
    "adamw": multi(optimizer={"name": "adamw", "lr": 2e-3}),
    "adamw_rate_4": multi(optimizer={"name": "adamw", "lr": 8e-3}),
    "radam": multi(optimizer={"name": "radam", "lr": 2e-3}),
    "rate_half": multi(optimizer={"lr": 5e-3}),
    "rate_twice": multi(optimizer={"lr": 2e-2}),
    "average_short": multi(ema={"std": 0.05}),
    "average_long": multi(ema={"std": None, "decay": 0.999}),
    "late_times": multi(objective=law(0.5, 1.0)),
    "wide_times": multi(objective=law(0.0, 1.5)),
    "uniform_times": multi(objective={"time_law": "Uniform"}),
    "data_prediction": multi(model={"convention": "jit"}),
    "data_late": multi(objective=law(0.5, 1.0), model={"convention": "jit"}),
    "data_later": multi(objective=law(1.0, 1.0), model={"convention": "jit"}),
    "data_late_twice": multi(
        objective=law(0.5, 1.0), model={"convention": "jit"}, optimizer={"lr": 2e-2}
    ),
    "cosine_loss": multi(objective={"cosine_loss": True}),
    "pseudo_huber": multi(objective={"pseudo_huber_c": 0.1}),
    "no_label_dropout": multi(objective={"label_dropout": 0.0}),
    "enhanced_target": multi(objective={"field": "enhanced", "enhancement_ratio": 0.13}),
    # One change of few_step each, and other objectives with its optimizer and guidance.
    "unguided": few(objective={"enhancement_ratio": 1.0}),
    "few_muon": few(optimizer={"name": "muon"}),
    "few_rate_half": few(optimizer={"lr": 5e-4}),
    "few_rate_twice": few(optimizer={"lr": 2e-3}),
    "few_more_guidance": few(objective={"enhancement_ratio": 1.3}),
    "few_less_guidance": few(objective={"enhancement_ratio": 1.15}),  # of drawings
    "no_anchor": few(objective={"flow_anchor": 0.0, "destination": pair(0.25, 0.75)}),
    "plain_step": few(objective={"step_rule": "one", "clamp": None}),
    "normalized": few(objective={"clamp": None, "normalize": 0.1}),
    "one_time": few(
        objective={
            "preset": "ucgm_few",
            "field": "distillation",
            "enhancement_ratio": 1.15,
            "enhancement_interval": [0.0, 1.0],
        },
        optimizer={"name": "adamw", "lr": 1e-3, "schedule": "cosine", "warmup_steps": 0},
        ema={"std": 0.1},
    ),
    "average_velocity": few(
        objective={
            "preset": "meanflow",
            "field": "distillation",
            "enhancement_ratio": 1.15,
            "guidance_mix": 0.0,
            "dropped_rows": "all",
            "destination": pair(0.5, 0.25),
        },
        optimizer={"name": "adamw", "lr": 1e-3, "schedule": "cosine", "warmup_steps": 0},
        ema={"std": 0.1},
    ),
}
"""The first five are the defaults and what they are compared with."""

SEARCH = (
    *(
        "multi_step",
        "photographs",
        "adamw",
        "adamw_rate_4",
        "rate_half",
        "rate_twice",
        "average_short",
    ),
    *("average_long", "late_times", "wide_times", "uniform_times", "data_prediction"),
    *("data_late", "data_later", "data_late_twice", "no_label_dropout", "enhanced_target"),
    *("few_step", "few_rate_half", "few_rate_twice", "unguided", "few_more_guidance", "one_time"),
    "few_less_guidance",
    "average_velocity",
)
"""Rows of a search for the best settings of a folder."""


class Study(NamedTuple):
    """A set of images with its networks, lengths and judges."""

    name: str
    data: Settings | None
    network: Settings
    batch: int
    steps: int
    tuning_steps: int
    multi: tuple[int, ...]
    few: tuple[int, ...]
    samples: int
    metrics: MetricConfig
    folder: Path


def run(study: Study, name: str, seed: int) -> Path:
    """Train and measure a row, and what it starts from, unless that is done; its folder."""
    row, folder = ROWS[name], study.folder / name / f"seed{seed}"
    init = None if row.init is None else run(study, row.init, seed)
    length = study.steps if init is None else study.tuning_steps
    section = train_section(length, study.batch, seed, init) | {"grad_clip": 1.0}
    shared: Settings = {"train": section}
    shared |= {} if study.data is None else {"data": study.data}
    shared |= {} if init else {"model": study.network}
    train_row(row.settings, shared, folder)
    report = folder / "report"
    if not (report / "benchmark.json").exists():
        benchmark(
            str(folder),
            list(study.multi if init is None else study.few),
            num_images=study.samples,
            settings=SamplingConfig(seed=seed),
            metrics_config=study.metrics,
            out_dir=report,
            keep_features=False,
        )
    return folder


def floor(study: Study, extractor: Extractor) -> float:
    """FID of as many draws from the training images, mean of five."""
    config = read_config(next(study.folder.glob("*/seed*/config.yaml")))
    real = statistics_of(DatasetImages(config.data.open()), extractor)
    rows, whole = real.rows("features"), real.moments["features"]
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(5):
        picked = torch.randint(len(rows), (study.samples,), generator=generator)
        found.append(frechet_distance(moments_of(rows[picked]), whole))
    return statistics.mean(found)


def scores_of(study: Study, name: str, key: str) -> list[dict[int, float]]:
    """A score by number of steps, for every seed that there is."""
    reports = sorted((study.folder / name).glob("seed*/report/benchmark.json"))
    rows = [json.loads(path.read_text())["rows"] for path in reports]
    return [{row["steps"]: row["scores"][key] for row in found} for found in rows]


def tables(study: Study, prefix: str, least: float) -> list[str]:
    """Lines of one judge: every row, and the excess of our defaults over that of the others.

    Args:
        study: what was measured.
        prefix: of the judge's scores.
        least: its noise floor.
    """
    steps = sorted({*study.multi, *study.few})
    head = ["row", *(f"{n}" for n in steps), "held-out, best", "accuracy from", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, row in ROWS.items():
        found = scores_of(study, name, f"{prefix}fid")
        if not found:
            continue
        cells = [cell([scores[n] for scores in found if n in scores], 4) for n in steps]
        held = [min(scores.values()) for scores in scores_of(study, name, f"{prefix}fid_heldout")]
        judged = [n for n in study.multi if n >= 4] if row.init is None else study.few
        right = "-"
        if "accuracy" in study.metrics.metrics:
            every = scores_of(study, name, f"{prefix}accuracy")
            right = f"{min(scores[n] for scores in every for n in judged):.3f}"
        ends = [cell(held, 4), right, str(len(found))]
        lines.append(f"| {name} | {' | '.join([*cells, *ends])} |")
    lines += ["", f"Noise floor {least:.4f}. Excess over it, ours over the other's (means):", ""]
    for ours, other, judged in (
        ("multi_step", "flow_matching", (4, 8)),
        ("few_step", "ucgm_few", (1, 2)),
        ("few_step_240", "ucgm_few", (1, 2)),
    ):
        pair = [scores_of(study, name, f"{prefix}fid") for name in (ours, other)]
        if not all(pair):
            continue
        for n in judged:
            one, two = (statistics.mean(scores[n] for scores in found) - least for found in pair)
            lines.append(f"- {ours} over {other} at {n}: {one / two:.2f}")
    return [*lines, *searched(study, prefix)]


def searched(study: Study, prefix: str) -> list[str]:
    """Lines of a search: FID of each default over that of the best row."""
    lines = []
    for ours, judged in (("multi_step", study.multi), ("few_step", study.few)):
        rows = {
            name: found
            for name, row in ROWS.items()
            if name in SEARCH
            and row.init == ROWS[ours].init
            and (found := scores_of(study, name, f"{prefix}fid"))
        }
        if len(rows) < 3 or ours not in rows:
            continue
        for n in judged:
            means = {name: statistics.mean(s[n] for s in found) for name, found in rows.items()}
            best = min(means, key=means.__getitem__)
            lines.append(
                f"- {ours} at {n}: FID {means[ours] / means[best]:.2f} times that of the best of "
                f"{len(rows)} rows, {best}"
            )
    return lines


def main() -> None:
    """Train, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--data", nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--side", type=int, default=32, help="of these images, in pixels")
    parser.add_argument("--grey", action="store_true", help="one channel, which ours find alone")
    parser.add_argument("--features")
    parser.add_argument("--second")
    parser.add_argument("--size", default="T/2")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tuning-steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--multi", type=int, nargs="+", default=MULTI_STEPS, help="steps sampled")
    parser.add_argument("--few", type=int, nargs="+", default=FEW_STEPS, help="the same, tuned")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--one-class", action="store_true", help="no conditional accuracy")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/recipe"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    extractors = ["digits" if asked.features is None else OWN, OWN][: 1 + bool(asked.second)]
    weights = [asked.features or "default", asked.second][: len(extractors)]
    data = None
    if asked.data:
        data = {
            "class_path": "Images",
            "path": asked.data[0],
            "held_out_path": asked.data[1],
            "size": asked.side,
        }
        data |= {"channels": 1} if asked.grey else {}
    scores = ("fid", "fid_heldout", "accuracy")[: 2 if asked.one_class else 3]
    metrics = MetricConfig(scores, tuple(extractors), tuple(weights))
    study = Study(
        asked.name,
        data,
        {"size": asked.size},
        asked.batch,
        asked.steps,
        asked.tuning_steps,
        tuple(asked.multi),
        tuple(asked.few),
        asked.samples,
        metrics,
        asked.out_dir / asked.name,
    )
    names = asked.rows or (SEARCH if asked.search else list(ROWS)[:5])
    for seed in asked.seeds:
        for name in names:
            run(study, name, seed)
    lines: list[str] = []
    for name, file in zip(extractors, weights, strict=True):
        extractor = open_extractor(name, None if file == "default" else file)
        lines += [f"Judge: {extractor.name}, {extractor.note}.", ""]
        prefix = "" if len(lines) == 2 else f"{extractor.name}."
        lines += [*tables(study, prefix, floor(study, extractor)), ""]
    print("\n".join(lines))
    write_part("recipe.md", study.name, lines)


if __name__ == "__main__":
    main()
