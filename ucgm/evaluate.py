"""Images to features to scores: what the benchmark and ``ucgm evaluate`` have in common.

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
from dataclasses import dataclass

import torch
from torch import Tensor

from ucgm.data.source import DataConfig, Dataset
from ucgm.extractors import Extractor
from ucgm.metrics import (
    Gaussian,
    Reference,
    conditional_accuracy,
    frechet_distance,
    inception_score,
    kernel_distance,
    load_reference,
    moments_of,
    precision_recall,
)
from ucgm.metrics.reference import digest_of

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
    if reference.features is None:
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


def score(
    measured: Measured,
    metrics: Sequence[str],
    reference: Reference,
    held_out: Reference | None = None,
) -> dict[str, float]:
    """The chosen metrics of a set of images; a spread comes as ``kid_std`` and the like."""
    scores: dict[str, float] = {}
    if "fid" in metrics:
        scores["fid"] = frechet_distance(measured.gaussian, reference.gaussian)
    if "fid_heldout" in metrics and held_out is not None:
        scores["fid_heldout"] = frechet_distance(measured.gaussian, held_out.gaussian)
    if "sfid" in metrics and measured.spatial is not None and reference.spatial is not None:
        scores["sfid"] = frechet_distance(measured.spatial, reference.spatial)
    if reference.features is not None and {"kid", "precision", "recall"} & set(metrics):
        rows = measured.rows("features")
        if "kid" in metrics:
            scores["kid"], scores["kid_std"] = kernel_distance(rows, reference.features)
        if {"precision", "recall"} & set(metrics):
            precision, recall = precision_recall(rows, reference.features)
            both = {"precision": precision, "recall": recall}
            scores |= {name: both[name] for name in both if name in metrics}
    if "inception_score" in metrics:
        mean, spread = inception_score(measured.rows("logits"))
        scores |= {"inception_score": mean, "inception_score_std": spread}
    if "accuracy" in metrics:
        scores["accuracy"] = conditional_accuracy(measured.rows("logits"), measured.rows("labels"))
    return scores


def measure(outputs: dict[str, Tensor], labels: Tensor | None = None) -> Measured:
    """Measured of extractor outputs that are in memory."""
    rows = dict(outputs) if labels is None else {**outputs, "labels": labels}
    spatial = moments_of(outputs["spatial"]) if "spatial" in outputs else None
    return Measured(moments_of(outputs["features"]), spatial, rows.__getitem__)


def extract_dataset(
    data: Dataset, extractor: Extractor, batch_size: int = 1000
) -> tuple[dict[str, Tensor], Tensor]:
    """Extractor outputs and labels of all images of a data set.

    Raises:
        ValueError: when the data set does not hold real images (lossy latents).
    """
    if not data.exact:
        raise ValueError(
            f"{data.name} holds latents, their decoded images are no reference: give a reference "
            "file made by `ucgm reference` from the images."
        )
    parts, labels = [], []
    for indices in torch.arange(len(data)).split(batch_size):
        x, y = data.__getitems__(indices)
        parts.append(extractor(data.decode(x)))
        labels.append(y)
    outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return outputs, torch.cat(labels)


def reference_of(data: Dataset, extractor: Extractor) -> Reference:
    """Statistics and feature rows of all images of a data set."""
    outputs, _ = extract_dataset(data, extractor)
    measured = measure(outputs)
    return Reference(
        name=data.name,
        gaussian=measured.gaussian,
        digest=digest_of(measured.gaussian),
        spatial=measured.spatial,
        features=outputs["features"],
        extractor=(extractor.name, extractor.digest),
        protocol={"data": data.describe()},
    )


def find_references(
    config: DataConfig, extractor: Extractor, path: str | None, held_out_path: str | None
) -> tuple[Reference, Reference | None]:
    """Reference and held-out reference: the files given, else the run's own data.

    Raises:
        ValueError: when a file does not belong to the extractor, or the data are no images.
    """
    found: list[Reference | None] = []
    for file, source in ((path, config), (held_out_path, config.held_out())):
        reference = None
        if file is not None:
            reference = load_reference(file)
        elif source is not None and (path is None or file is not None):
            reference = reference_of(source.open(), extractor)
        if reference is not None:
            reference.check(extractor.name, extractor.digest, extractor.dimensions["features"])
        found.append(reference)
    assert found[0] is not None
    return found[0], found[1]


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
