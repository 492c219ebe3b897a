"""``ucgm condense evaluate``: what a condensed set teaches, beside what random images teach.

Accuracy on held-out real images after the last step, hard labels and soft ones, mean and deviation
over seeds (of students, and of the random images), for two architectures:

    full     all real images, their classes
    random   as many real images as the set has, in both regimes
    method   the set, in both regimes

    HLR = accuracy(full, hard) - accuracy(method, hard)        hard label recovery, in points
    IOR = accuracy(method, r) - accuracy(random, r)            improvement over random
    LRS = (e^a - e^-1) / (e - e^-1),  a = (IOR_soft - HLR) / 2  label-robust score (DD-Ranking)
    ARS = the same of a = (IOR_hard + IOR_plain) / 2            augmentation-robust: both of hard
                                                                labels, plain without augmentation
"""

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucgm.condense.condensed import CondensedSet
from ucgm.condense.pool import RealImages, open_sets
from ucgm.condense.students import (
    Architecture,
    Course,
    Labeller,
    SoftLabels,
    accuracy,
    new_student,
    store_labels,
    teach,
)
from ucgm.data.pixels import from_uint8
from ucgm.runtime.files import sole_writer, write_atomic
from ucgm.runtime.processes import Progress

ARCHITECTURES: tuple[Architecture, ...] = ("convolutions", "perceptron")


def score(alpha: float) -> float:
    """DD-Ranking's map of a in [-1, 1] to [0, 1]."""
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def evaluate_set(
    folder: str,
    seeds: int = 3,
    steps: int | None = None,
    full_steps: int = 1000,
) -> dict[str, Any]:
    """Teach students by a condensed set, by random images and by all; print and keep the table.

    Args:
        folder: written by ``ucgm condense``.
        seeds: how many of each.
        steps: of a student of few images; 200 and 4 per image of a class when left out.
        full_steps: of a student of all images.

    Returns:
        the content of ``evaluation.json``.
    """
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}: it must be at least 1")
    path = Path(folder)
    found = CondensedSet.load(path)
    said = found.manifest["data"]
    train, test = open_sets(said["where"], said["size"], said["held_out"])
    ipc = found.manifest["settings"]["ipc"]
    length = steps or 200 + 4 * ipc
    begin = time.perf_counter()
    table = _taught(found, train, test, seeds, length, full_steps)
    content = {
        "set": found.manifest["settings"],
        "tested_on": f"{len(test.labels)} images of {test.name}",
        "seeds": seeds,
        "steps": {"few": length, "full": full_steps},
        "accuracy": table,
        "scores": scores(table),
        "seconds": time.perf_counter() - begin,
    }
    with sole_writer(path / "evaluation.json", "ucgm condense evaluate"):
        write_atomic(path / "evaluation.json", json.dumps(content, indent=2) + "\n")
        write_atomic(path / "evaluation.md", report(content))
    print(report(content))
    return content


def _taught(
    found: CondensedSet,
    train: RealImages,
    test: RealImages,
    seeds: int,
    length: int,
    full_steps: int,
) -> dict[str, dict[str, list[float]]]:
    """Accuracies by architecture, and by images and labels, one per seed."""
    settings = found.manifest["settings"]
    x, y = train.pixels, train.labels
    own, own_labels = found.decoded()
    jobs = len(ARCHITECTURES) * seeds * 7
    progress = Progress(jobs, "teaching", unit="students")
    table: dict[str, dict[str, list[float]]] = {}

    def taught(
        kind: Architecture,
        seed: int,
        images: Tensor,
        labels: Tensor,
        soft: SoftLabels | Labeller | None,
        number: int,
        augmented: bool = True,
    ) -> float:
        student = new_student(kind, train.shape, len(train.class_names), 1000 + seed)
        course = Course(number, temperature=settings["temperature"], seed=2000 + seed)
        teach(student, images, labels, course, train.mirrored, soft, augmented)
        progress.add(1)
        return accuracy(student, test.pixels, test.labels)

    for kind in ARCHITECTURES:
        columns = table[kind] = {}
        for seed in range(seeds):
            rows = _random_rows(y, settings["ipc"], seed)
            few = from_uint8(x[rows]), y[rows]
            random_soft = _soft_of(found, few[0], train.mirrored, seed)
            own_soft = found.soft or _soft_of(found, own, train.mirrored, seed)
            for name, value in {
                "full hard": taught(kind, seed, x, y, None, full_steps),
                "random plain": taught(kind, seed, *few, None, length, False),
                "random hard": taught(kind, seed, *few, None, length),
                "random soft": taught(kind, seed, *few, random_soft, length),
                "method plain": taught(kind, seed, own, own_labels, None, length, False),
                "method hard": taught(kind, seed, own, own_labels, None, length),
                "method soft": taught(kind, seed, own, own_labels, own_soft, length),
            }.items():
                columns.setdefault(name, []).append(100 * value)
    return table


def _soft_of(
    found: CondensedSet, images: Tensor, mirrored: bool, seed: int
) -> SoftLabels | Labeller:
    """Soft labels of images (N, C, H, W) as the set has them; those of a set without are stored."""
    settings = found.manifest["settings"]
    if settings["labels"] == "online":
        return found.observer.logits
    generator = torch.Generator().manual_seed(seed)
    views = settings["label_views"]
    return store_labels(images, views, mirrored, found.observer.logits, generator)


def _random_rows(labels: Tensor, count: int, seed: int) -> Tensor:
    """Rows of ``count`` random images of every class."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in range(int(labels.max()) + 1):
        of_class = torch.nonzero(labels == label)[:, 0]
        rows.append(of_class[torch.randperm(len(of_class), generator=generator)[:count]])
    return torch.cat(rows)


def scores(table: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """HLR, IOR, LRS and ARS by architecture, of accuracies in % one per seed."""
    found = {}
    for kind, columns in table.items():
        mean = {name: statistics.mean(values) for name, values in columns.items()}
        recovery = mean["full hard"] - mean["method hard"]
        gain = {r: mean[f"method {r}"] - mean[f"random {r}"] for r in ("plain", "hard", "soft")}
        found[kind] = {
            "HLR": recovery,
            "IOR hard": gain["hard"],
            "IOR soft": gain["soft"],
            "LRS": score((gain["soft"] - recovery) / 200),
            "ARS": score((gain["hard"] + gain["plain"]) / 200),
        }
    return found


def report(content: dict[str, Any]) -> str:
    """The table as Markdown."""
    settings, lines = content["set"], []
    lines += [
        f"{settings['ipc']} images per class, {settings['selector']}, {content['tested_on']}, "
        f"{content['seeds']} seeds; accuracy in %, mean and deviation.",
        "",
    ]
    names = next(iter(content["accuracy"].values()))
    lines.append("| student | " + " | ".join(names) + " | HLR | IOR hard | IOR soft | LRS | ARS |")
    lines.append("|---|" + "---:|" * (len(names) + 5))
    for kind, columns in content["accuracy"].items():
        cells = [
            f"{statistics.mean(v):.1f} ± {statistics.stdev(v) if len(v) > 1 else 0:.1f}"
            for v in columns.values()
        ]
        found = content["scores"][kind]
        cells += [f"{found[k]:.1f}" for k in ("HLR", "IOR hard", "IOR soft")]
        cells += [f"{found[k]:.3f}" for k in ("LRS", "ARS")]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\n{content['seconds']:.0f} s. plain: no augmentation.\n"
