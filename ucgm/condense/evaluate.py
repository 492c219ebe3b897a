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
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucgm.condense.condensed import CondensedSet
from ucgm.condense.pool import RealImages, RealPool, open_sets
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
from ucgm.evaluation.metrics.reference import digest_of
from ucgm.evaluation.report.tables import aligned
from ucgm.runtime.files import sole_writer, write_atomic
from ucgm.runtime.processes import Progress
from ucgm.runtime.reading import read_json

ARCHITECTURES: tuple[Architecture, ...] = ("convolutions", "perceptron")
BASELINES = ("full hard", "random plain", "random hard", "random soft")
Table = dict[str, dict[str, list[float]]]


def score(alpha: float) -> float:
    """DD-Ranking's map of a in [-1, 1] to [0, 1]."""
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def evaluate_set(
    folder: str,
    seeds: int = 3,
    steps: int | None = None,
    full_steps: int = 1000,
    known: str | None = None,
) -> dict[str, Any]:
    """Teach students by a condensed set, by random images and by all; print and keep the table.

    Args:
        folder: written by ``ucgm condense``.
        seeds: how many of each.
        steps: of a student of few images; 200 and 4 per image of a class when left out.
        full_steps: of a student of all images.
        known: evaluation.json of a set of the same data, observer and size, whose students of all
            and of random images are not taught again.

    Returns:
        the content of ``evaluation.json``.

    Raises:
        ValueError: ``known`` has other students.
    """
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}: it must be at least 1")
    path = Path(folder)
    found = CondensedSet.load(path)
    settings, where = found.manifest["settings"], found.manifest["data"]
    train, test = open_sets(where["where"], where["size"], where["held_out"])
    begin = time.perf_counter()
    facts = {
        "train_sha256": digest_of(train.pixels, train.labels),
        "test_sha256": digest_of(test.pixels, test.labels),
        "observer_sha256": found.observer.digest,
        "images_per_class": found.images.labels.bincount().tolist(),
        "soft_labels": "online" if settings["labels"] == "online" else settings["label_views"],
        "temperature": settings["temperature"],
        "seeds": seeds,
        "steps": {"few": steps or 200 + 4 * settings["ipc"], "full": full_steps},
    }
    table = _taught(found, train, test, facts, _known(known, facts) if known else {})
    content = {
        "set": settings,
        "tested_on": f"{len(test.labels)} images of {test.name}",
        **facts,
        "accuracy": table,
        "scores": scores(table),
        "seconds": time.perf_counter() - begin,
    }
    with sole_writer(path / "evaluation.json", "ucgm condense evaluate"):
        write_atomic(path / "evaluation.json", json.dumps(content, indent=2) + "\n")
        write_atomic(path / "evaluation.md", report(content))
    print(report(content))
    return content


def _known(path: str, facts: dict[str, Any]) -> Table:
    """Accuracies of students of all and of random images in an evaluation with the same facts."""
    wanted = {kind: dict.fromkeys(BASELINES, [float]) for kind in ARCHITECTURES}
    content = read_json(Path(path), {"accuracy": wanted})
    for key, value in facts.items():
        if content.get(key) != value:
            raise ValueError(
                f"{path} has {key} {content.get(key)} and this evaluation {value}: its students "
                "are others, leave out --known"
            )
    return {kind: {n: content["accuracy"][kind][n] for n in BASELINES} for kind in ARCHITECTURES}


def _taught(
    found: CondensedSet, train: RealImages, test: RealImages, facts: dict[str, Any], known: Table
) -> Table:
    """Accuracies by architecture, and by images and labels, one per seed; ``known`` ones as they
    are.
    """
    x, y = train.pixels, train.labels
    own, own_labels = found.decoded()
    length, seeds = facts["steps"]["few"], facts["seeds"]
    progress = Progress(
        len(ARCHITECTURES) * seeds * (3 if known else 7), "teaching", unit="students"
    )

    def taught(
        kind: Architecture,
        seed: int,
        images: Tensor,
        labels: Tensor,
        soft: SoftLabels | Labeller | None,
        number: int = length,
        augmented: bool = True,
    ) -> float:
        student = new_student(kind, train.shape, len(train.class_names), 1000 + seed)
        course = Course(number, temperature=facts["temperature"], seed=2000 + seed)
        teach(student, images, labels, course, train.mirrored, soft, augmented)
        progress.add(1)
        return 100 * accuracy(student, test.pixels, test.labels)

    table: Table = {}
    for kind in ARCHITECTURES:
        columns = table[kind] = dict(known.get(kind, {}))
        for seed in range(seeds):
            own_soft = found.soft or _soft_of(found, own, train.mirrored, seed)
            new = {}
            if not known:
                rows = _random_rows(train, facts["images_per_class"], seed)
                few = from_uint8(x[rows]), y[rows]
                soft = _soft_of(found, few[0], train.mirrored, seed)
                new = {
                    "full hard": taught(kind, seed, x, y, None, facts["steps"]["full"]),
                    "random plain": taught(kind, seed, *few, None, augmented=False),
                    "random hard": taught(kind, seed, *few, None),
                    "random soft": taught(kind, seed, *few, soft),
                }
            new |= {
                "method plain": taught(kind, seed, own, own_labels, None, augmented=False),
                "method hard": taught(kind, seed, own, own_labels, None),
                "method soft": taught(kind, seed, own, own_labels, own_soft),
            }
            for name, value in new.items():
                columns.setdefault(name, []).append(value)
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


def _random_rows(images: RealImages, counts: list[int], seed: int) -> Tensor:
    """Rows of so many random images of every class."""
    rows = []
    for of_class, count in zip(RealPool(images, seed).rows, counts, strict=True):
        if len(of_class) < count:
            warnings.warn(
                f"there are {len(of_class)} real images of a class of which the set has {count}: "
                "the random column has fewer",
                stacklevel=2,
            )
        rows.append(of_class[:count])
    return torch.cat(rows)


def scores(table: Table) -> dict[str, dict[str, float]]:
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
    few, most = min(content["images_per_class"]), max(content["images_per_class"])
    text = (
        f"{few if few == most else f'{few} to {most}'} images per class, "
        f"{content['set']['selector']}, {content['tested_on']}, "
        f"{content['seeds']} seeds; accuracy in %, mean and deviation."
    )
    names, rows = next(iter(content["accuracy"].values())), []
    for kind, columns in content["accuracy"].items():
        cells = [
            f"{statistics.mean(v):.1f} ± {statistics.stdev(v) if len(v) > 1 else 0:.1f}"
            for v in columns.values()
        ]
        found = content["scores"][kind]
        cells += [f"{v:.{3 if name in ('LRS', 'ARS') else 1}f}" for name, v in found.items()]
        rows.append([kind, *cells])
    table = aligned(["student", *names, *found], rows)
    return f"{text}\n\n{table}\n\n{content['seconds']:.0f} s. plain: no augmentation.\n"
