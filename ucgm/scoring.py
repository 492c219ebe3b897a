"""Features to scores: what the benchmark and ``ucgm evaluate`` have in common.

Scores, and what each needs besides the generated images:

    fid              moments of the reference features          (1706.08500)
    fid_heldout      moments of real data that training never saw: a memorising generator has a
                     small fid and a fid_heldout no better than the noise floor
    sfid             moments of the reference's spatial features (2103.03841)
    kid, precision, recall   feature rows of the reference      (1801.01401, 1904.06991)
    inception_score  logits                                     (1606.03498)
    accuracy         logits of a classifier of the data's own classes, and the labels asked for
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ucgm.data.imagesets import NpzImages
from ucgm.extractors import Extractor
from ucgm.metrics import (
    Gaussian,
    Reference,
    conditional_accuracy,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from ucgm.processes import Progress

METRICS = (
    "fid",
    "fid_heldout",
    "sfid",
    "kid",
    "precision",
    "recall",
    "inception_score",
    "accuracy",
)


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of a set of images in feature space.

    Attributes:
        gaussian: moments of the features.
        spatial: moments of the spatial features, None where the extractor has none.
        rows: gives ``features`` (N, d), ``logits`` (N, K) or ``labels`` (N,), read when asked for.
    """

    gaussian: Gaussian
    spatial: Gaussian | None
    rows: Callable[[str], Tensor]


def available_metrics(
    extractor: Extractor, reference: Reference, held_out: Reference | None, num_classes: int
) -> dict[str, str]:
    """For each metric the empty string, or why it cannot be computed here."""
    rows, held, spatial, logits, accuracy = "", "", "", "", ""
    if reference.features is None and reference.images is None:
        rows = f"reference {reference.name} holds no feature rows: make it with `ucgm reference`"
    if held_out is None:
        held = "there is no held-out reference: give one"
    if "spatial" not in extractor.dimensions:
        spatial = f"{extractor.name} has no spatial features: use the inception extractor"
    elif reference.spatial is None:
        spatial = f"reference {reference.name} has no mu_s and sigma_s"
    if "logits" not in extractor.dimensions:
        logits = f"{extractor.name} has no logits"
    if extractor.num_classes == 0 or extractor.num_classes != num_classes:
        accuracy = f"the logits of {extractor.name} are not the {num_classes} classes of the data"
    reasons = ("", held, spatial, rows, rows, rows, logits, accuracy)
    return dict(zip(METRICS, reasons, strict=True))


def choose_metrics(asked: Sequence[str] | None, available: dict[str, str]) -> tuple[str, ...]:
    """The metrics to compute, in table order: all that can be when none are named.

    Raises:
        ValueError: for an unknown name, or one that cannot be computed here.
    """
    for name in asked or ():
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}: choose from {', '.join(METRICS)}.")
        if available[name]:
            raise ValueError(f"{name} cannot be computed: {available[name]}.")
    wanted = METRICS if asked is None else asked
    return tuple(name for name in METRICS if name in wanted and not available[name])


@dataclass(frozen=True)
class Ruler:
    """What samples are measured with; None means what fits the data.

    Attributes:
        metrics: names of :data:`METRICS`; all that can be computed.
        extractor: name of the feature extractor.
        weights: path of its weights.
        reference: file with statistics of real images; the training data.
        held_out: file with statistics of real images that training did not see.
    """

    metrics: tuple[str, ...] | None = None
    extractor: str | None = None
    weights: str | None = None
    reference: str | None = None
    held_out: str | None = None


@dataclass(frozen=True, eq=False)
class Judge:
    """An extractor, what images are compared with, and the metrics to compute.

    Attributes:
        extractor: of the features.
        metrics: in the order of the table.
        reference: for all metrics that need one.
        held_out: for ``fid_heldout``.
    """

    extractor: Extractor
    metrics: tuple[str, ...]
    reference: Reference
    held_out: Reference | None = None

    @cached_property
    def reference_rows(self) -> Tensor:
        """Feature rows (N, d) of the reference: from its file, or from the images in it."""
        if self.reference.features is not None:
            return self.reference.features
        assert self.reference.images is not None
        images = NpzImages(self.reference.images)
        progress = Progress(len(images), f"images of {self.reference.name}")
        rows = []
        for batch in torch.arange(len(images)).split(self.extractor.batch_size):
            rows.append(self.extractor(images.images(batch))["features"])
            progress.add(len(batch))
        return torch.cat(rows)

    def without(self, metric: str, asked: Sequence[str] | None, reason: str) -> "Judge":
        """The judge without a metric that nobody ``asked`` for by name.

        Raises:
            ValueError: when somebody did.
        """
        if asked is not None and metric in asked:
            raise ValueError(f"{metric} cannot be computed: {reason}.")
        return replace(self, metrics=tuple(name for name in self.metrics if name != metric))

    def score(self, measured: Measured) -> dict[str, float]:
        """The metrics of a set of images; a spread comes as ``kid_std`` and the like."""
        metrics, reference = self.metrics, self.reference
        scores: dict[str, float] = {}
        if "fid" in metrics:
            scores["fid"] = frechet_distance(measured.gaussian, reference.gaussian)
        if "fid_heldout" in metrics and self.held_out is not None:
            scores["fid_heldout"] = frechet_distance(measured.gaussian, self.held_out.gaussian)
        if "sfid" in metrics and measured.spatial is not None and reference.spatial is not None:
            scores["sfid"] = frechet_distance(measured.spatial, reference.spatial)
        if "kid" in metrics:
            rows = measured.rows("features")
            scores["kid"], scores["kid_std"] = kernel_distance(rows, self.reference_rows)
        if {"precision", "recall"} & set(metrics):
            both = precision_recall(measured.rows("features"), self.reference_rows)
            named = zip(("precision", "recall"), both, strict=True)
            scores |= {name: value for name, value in named if name in metrics}
        if "inception_score" in metrics:
            mean, spread = inception_score(measured.rows("logits"))
            scores |= {"inception_score": mean, "inception_score_std": spread}
        if "accuracy" in metrics:
            logits, labels = measured.rows("logits"), measured.rows("labels")
            scores["accuracy"] = conditional_accuracy(logits, labels)
        return scores

    def references(self) -> list[dict[str, Any]]:
        """Identities of the references, for the report."""
        return [
            {
                "name": reference.name,
                "sha256": reference.digest,
                "num_samples": reference.gaussian.count,
                "protocol": reference.protocol,
            }
            for reference in (self.reference, self.held_out)
            if reference is not None
        ]


def warn_if_few(count: int, dimension: int) -> None:
    """Warn where the bias of FID, about c / n, is not small."""
    if count <= dimension:
        warnings.warn(
            f"{count} samples for {dimension} features: the covariance is singular and FID is "
            "dominated by its bias. Use at least 30 samples per feature.",
            stacklevel=2,
        )
    elif count < 30 * dimension:
        warnings.warn(
            f"{count} samples for {dimension} features: FID is biased upwards by several percent. "
            f"Use at least {30 * dimension}, and compare equal numbers only.",
            stacklevel=2,
        )
