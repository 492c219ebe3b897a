"""From features to scores, for the benchmark and ``ucgm evaluate``.

Scores, and what each needs besides the generated images:

    fid              moments of the reference features          (1706.08500)
    fid_heldout      moments of real data that training never saw: a memorising generator has a
                     small fid and a fid_heldout no better than the noise floor
    fdr              fid over that of the held-out moments: 1 is as far from the training data as
                     real images are (FDr, 2604.28190); fdr_mean is its mean over the extractors
    sfid             moments of the reference's spatial features (2103.03841)
    kid, precision, recall   feature rows of the reference      (1801.01401, 1904.06991)
    sw               the same: sliced-Wasserstein distance      (2607.02375)
    swr              the same, and rows of held-out features: sw over theirs; swr_mean as fdr_mean
    inception_score  logits                                     (1606.03498)
    accuracy         logits of a classifier of the data's own classes, and the labels asked for
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from ucgm.evaluation.chunks import FeatureExtractor
from ucgm.evaluation.extractors import Extractor
from ucgm.evaluation.image_sets import NpzImages
from ucgm.evaluation.metrics import (
    Gaussian,
    Reference,
    conditional_accuracy,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    sliced_ratio,
    sliced_wasserstein,
)
from ucgm.runtime.processes import Progress

METRICS = ("fid", "fid_heldout", "fdr", "sfid", "kid", "sw", "swr", "precision", "recall",
           "inception_score", "accuracy")  # fmt: skip
RATIOS = ("fdr", "swr")  # to held-out real images: those of several extractors have a mean
# Images without which a metric has no value.
LEAST = {"precision": 4, "recall": 4, "inception_score": 10}


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What is known of a set of images in feature space.

    Attributes:
        moments: of ``features`` and, where the extractor has them, ``spatial``.
        rows: gives ``features`` (N, d), ``logits`` (N, K) or ``labels`` (N,), read when asked for.
    """

    moments: dict[str, Gaussian]
    rows: Callable[[str], Tensor]


Names = tuple[str, ...] | str | None


@dataclass(frozen=True)
class MetricConfig:
    """What samples are measured with; None means what fits the data.

    Several extractors look at the same images; the other settings then name one file for each, in
    the same order, ``default`` (or nothing, at the end) for its own.
    """

    metrics: tuple[str, ...] | None = None
    """names from fid fid_heldout fdr sfid kid sw swr precision recall inception_score accuracy; all
    that can be computed when left out."""
    extractor: Names = None
    """digits, inception, dinov2, clip, siglip, mae, convnext, random, a registered name or
    module:function; several give further columns. That of the reference, or of the data, when left
    out."""
    extractor_weights: Names = None
    """path of its weights."""
    reference: Names = None
    """statistics of real images, by `ucgm reference` (one file for all its extractors) or from ADM,
    EDM, MeanFlow; the training data when left out."""
    held_out: Names = None
    """statistics of real images that training did not see."""

    def each(self) -> list[tuple[str | None, ...]]:
        """Extractor, weights, reference and held_out of each extractor; None: what fits.

        Raises:
            ValueError: when there are more files than extractors.
        """
        columns: list[list[str | None]] = []
        for key in ("extractor", "extractor_weights", "reference", "held_out"):
            given: Names = getattr(self, key)
            names = [given] if given is None or isinstance(given, str) else list(given)
            count = len(columns[0]) if columns else max(1, len(names))
            if len(names) > count:
                raise ValueError(f"{len(names)} files for {key}, but {count} extractor(s).")
            names = [None if name == "default" else name for name in names]
            columns.append(names + [None] * (count - len(names)))
        return list(zip(*columns, strict=True))


@dataclass(frozen=True, eq=False)
class Evaluator:
    """An extractor, what images are compared with, and the metrics to compute.

    Attributes:
        extractor: of the features.
        metrics: in the order of the table.
        reference: for all metrics that need one.
        held_out: for ``fid_heldout``, ``fdr`` and ``swr``.
        prefix: of the extractor's outputs among those of several, and of the scores.
    """

    extractor: Extractor
    metrics: tuple[str, ...]
    reference: Reference
    held_out: Reference | None = None
    prefix: str = ""

    @cached_property
    def reference_rows(self) -> Tensor:
        """Feature rows (N, d) of the reference: from its file, or from the images in it."""
        if self.reference.features is not None:
            return self.reference.features
        assert self.reference.images is not None
        images = NpzImages(self.reference.images)
        progress = Progress(len(images), f"images of {self.reference.name}")
        made = FeatureExtractor(images, self.extractor)
        return made.chunk(torch.arange(len(images)), progress.add)[0]["features"]

    @cached_property
    def real_distance(self) -> float:
        """FID of the held-out images, which ``fdr`` is in units of."""
        assert self.held_out is not None
        return frechet_distance(self.held_out.gaussian, self.reference.gaussian)

    def unavailable(self, num_classes: int) -> dict[str, str]:
        """For each metric the empty string, or why it cannot be, for data of ``num_classes``."""
        extractor, reference = self.extractor, self.reference
        name, theirs = extractor.name, f"reference {reference.name}"
        rows = held_out = spatial = logits = accuracy = ""
        if reference.features is None and reference.images is None:
            rows = f"{theirs} holds no feature rows: make it with `ucgm reference`"
        elif reference.features is not None and len(reference.features) < LEAST["recall"]:
            rows = f"{theirs} keeps {len(reference.features)} feature rows alone"
        if self.held_out is None:
            held_out = "there is no held-out reference: give one"
        if "spatial" not in extractor.dimensions:
            spatial = f"{name} has no spatial features: use the inception extractor"
        elif reference.spatial is None:
            spatial = f"{theirs} has no mu_s and sigma_s"
        if "logits" not in extractor.dimensions:
            logits = f"{name} has no logits"
        if extractor.num_classes == 0 or extractor.num_classes != num_classes:
            accuracy = f"the logits of {name} are not the {num_classes} classes of the data"
        swr = held_out or rows
        if self.held_out is not None and not swr:
            if self.held_out.features is None:
                swr = f"held-out reference {self.held_out.name} holds no feature rows"
            elif reference.features is not None:
                same = torch.equal(self.held_out.features, reference.features)
                swr = f"the held-out images are those of {theirs}" * same
        reasons = ("", held_out, held_out, spatial, rows, rows, swr, rows, rows, logits, accuracy)
        return dict(zip(METRICS, reasons, strict=True))

    def score(self, statistics: FeatureStatistics) -> dict[str, float]:
        """The metrics of a set of images; a spread comes as ``kid_std`` and the like."""

        def distance(output: str, reference: Gaussian | None) -> float:
            assert reference is not None
            return frechet_distance(statistics.moments[self.prefix + output], reference)

        def rows(output: str) -> Tensor:
            return statistics.rows(self.prefix + output)

        def ratio() -> float:
            assert self.held_out is not None and self.held_out.features is not None
            ours, real = rows("features"), self.held_out.features
            labels = statistics.rows("labels") if len(ours) > len(real) else None
            return sliced_ratio(ours, real, self.reference_rows, labels)

        @cache
        def both() -> tuple[float, float]:
            return precision_recall(rows("features"), self.reference_rows)

        makers: dict[str, Callable[[], float | tuple[float, float]]] = {
            "fid": lambda: distance("features", self.reference.gaussian),
            "fid_heldout": lambda: distance("features", self.held_out and self.held_out.gaussian),
            "fdr": lambda: distance("features", self.reference.gaussian) / self.real_distance,
            "sfid": lambda: distance("spatial", self.reference.spatial),
            "kid": lambda: kernel_distance(rows("features"), self.reference_rows),
            "sw": lambda: sliced_wasserstein(rows("features"), self.reference_rows),
            "swr": ratio,
            "precision": lambda: both()[0],
            "recall": lambda: both()[1],
            "inception_score": lambda: inception_score(rows("logits")),
            "accuracy": lambda: conditional_accuracy(rows("logits"), statistics.rows("labels")),
        }
        scores: dict[str, float] = {}
        for name in self.metrics:
            found = makers[name]()
            mean, *spread = found if isinstance(found, tuple) else (found,)
            scores[self.prefix + name] = mean
            scores |= {f"{self.prefix}{name}_std": value for value in spread}
        return scores

    def references(self) -> list[dict[str, Any]]:
        """Identities of the references, for the report."""
        return [
            {
                "extractor": self.extractor.name,
                "name": reference.name,
                "sha256": reference.digest,
                "num_samples": reference.gaussian.count,
                "protocol": reference.protocol,
            }
            for reference in (self.reference, self.held_out)
            if reference is not None
        ]
