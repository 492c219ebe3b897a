"""Post-training a 1-step model of the digits by one classifier, judged by another.

    python scripts/recipe.py digits few_step ucgm_few
    python scripts/posttrain.py few_step [ROW ...] [--seeds 0 1 2] [--steps 100]

The training scans are halved: a convolutional classifier sees one half, a transformer the other.
The tuned models of the first command are trained on at 1 step, by Frechet distance, kernel distance
or drift in the features of encoders that never are the transformer; that one, the shipped
classifier and the encoders of the training score before and after.  5,000 samples at 1 step,
against the training scans and the held-out ones.  What is done is not done again; the table goes to
docs/results/posttrain.md.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from tables import cell, write_part
from trained import train_row, train_section

sys.path.insert(0, str(Path(__file__).parents[1]))
from scripts.train_classifier import fit, images_of
from ucgm.evaluation.benchmark import benchmark
from ucgm.evaluation.scoring import MetricConfig
from ucgm.generation.samples import SamplingConfig
from ucgm.runs.config import allow_module

OWN = "scripts.train_classifier:build"
TRAINED, INDEPENDENT = "convolutions", "attention"


class Row(NamedTuple):
    """A post-training: the distance of its terms, and their encoders."""

    title: str
    distance: str
    encoders: tuple[str, ...]


ROWS = {
    "one": Row("FD, convolutions", "fd", (TRAINED,)),
    "default": Row("FD, shipped (the default)", "fd", ("digits",)),
    "two": Row("FD, convolutions and random", "fd", (TRAINED, "random")),
    "random": Row("FD, random", "fd", ("random",)),
    "kernel": Row("MMD, convolutions", "mmd", (TRAINED,)),
    "drift": Row("drift, convolutions", "drift", (TRAINED,)),
}


class Study(NamedTuple):
    """Lengths, and where the runs are."""

    start: Path
    steps: int
    batch: int
    queue: int | None
    clip: bool
    samples: int
    lr: float
    epochs: int
    folder: Path


def classifiers(study: Study) -> dict[str, str]:
    """Weights of the two classifiers, each trained on its own half unless that is done."""
    found = {}
    test = images_of("digits", "test", 8)[:2]
    images, labels, _ = images_of("digits", "train", 8)
    for half, name in enumerate((TRAINED, INDEPENDENT)):
        path = study.folder.parent / f"{name}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fit(name, (images[half::2], labels[half::2]), test, path, study.epochs, False)
        found[name] = str(path)
    return found


def run(study: Study, name: str, seed: int) -> None:
    """Train and measure a row, or measure what it starts from, unless that is done."""
    start, weights = study.start / f"seed{seed}", classifiers(study)
    folder = study.folder / name / f"seed{seed}"
    if name != "before":
        row = ROWS[name]
        sets = [
            {"extractor": encoder, "distance": row.distance}
            | ({"extractor": OWN, "weights": weights[encoder]} if encoder in weights else {})
            | {"queue": study.queue, "clip": study.clip}
            for encoder in row.encoders
        ]
        settings = {
            "objective": {"preset": "fd_post", "sets": sets},
            "optimizer": {"lr": study.lr, "schedule": "cosine", "warmup_steps": study.steps // 20},
            "ema": {"decay": 0.95},
            "sampler": {"steps": 1},
        }
        train_row(settings, {"train": train_section(study.steps, study.batch, seed, start)}, folder)
    if not (folder / "report/benchmark.json").exists():
        judges = MetricConfig(
            extractor=(OWN, "digits", OWN, "random"),
            extractor_weights=(weights[INDEPENDENT], "default", weights[TRAINED], "default"),
        )
        benchmark(
            str(start if name == "before" else folder),
            [1],
            num_images=study.samples,
            settings=SamplingConfig(seed=seed),
            metrics_config=judges,
            out_dir=folder / "report",
            keep_features=False,
        )


def scores(study: Study, name: str, key: str) -> list[float]:
    """A score of every seed."""
    reports = sorted((study.folder / name).glob("seed*/report/benchmark.json"))
    return [json.loads(path.read_text())["rows"][0]["scores"][key] for path in reports]


def ratios(one: list[float], other: list[float]) -> str:
    """Quotients of the seeds, such as 0.51, 0.48, 0.55."""
    return ", ".join(f"{a / b:.2f}" for a, b in zip(one, other, strict=False))


def table(study: Study) -> list[str]:
    """Lines of all rows."""
    heads = ("attention", "attention, held-out", "shipped", "shipped, held-out", "convolutions")
    keys = ("fid", "fid_heldout", "digits.fid", "digits.fid_heldout")
    keys += ("classifier_convolutions.fid", "random.fid", "accuracy")
    lines = [f"| FID, 1 step | {' | '.join(heads)} | random | accuracy |", "|---|" + "---:|" * 7]
    present = [name for name in ("before", *ROWS) if scores(study, name, "fid")]
    for name in present:
        title = "before" if name == "before" else ROWS[name].title
        cells = [cell(scores(study, name, key)) for key in keys]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    report = next((study.folder / "before").glob("seed*/report/benchmark.json"))
    real = json.loads(report.read_text())["real"]["scores"]
    cells = [cell([real[key]] if key in real else []) for key in keys]
    lines += [f"| held-out scans themselves | {' | '.join(cells)} |", ""]
    for name in present[1:]:
        over = [
            f"{head} {ratios(scores(study, name, key), scores(study, 'before', key))}"
            for head, key in zip((*heads, "random"), keys, strict=False)
        ]
        lines.append(f"- {ROWS[name].title}, over before per seed: {'; '.join(over)}.")
    return lines


def main() -> None:
    """Train, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("start", help="row of the recipe that is trained on")
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--starts", type=Path, default=Path("runs/recipe/digits"))
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--queue", type=int, help="samples that are remembered")
    parser.add_argument("--unclipped", action="store_true", help="encoders see pixels as made")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--epochs", type=int, default=60, help="of the classifiers")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/posttrain"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    allow_module("scripts.train_classifier")
    lengths = asked.steps, asked.batch, asked.queue, not asked.unclipped, asked.samples
    folder = asked.out_dir / asked.start
    study = Study(asked.starts / asked.start, *lengths, asked.lr, asked.epochs, folder)
    for seed in asked.seeds:
        for name in ("before", *(asked.rows or ROWS)):
            run(study, name, seed)
    lines = table(study)
    print("\n".join(lines), flush=True)
    if not asked.rows:
        write_part("posttrain.md", asked.start, lines)


if __name__ == "__main__":
    main()
