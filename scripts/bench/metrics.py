"""Scores from features against torch-fidelity's, and the features themselves.

The features are like those of Inception's pool3: positive, 2,048 of them, a falling spectrum.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
from timing import Pair
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ucgm.evaluation.extractors.inception import build_inception
from ucgm.evaluation.metrics import (
    RunningMoments,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)

BATCH = 1024  # rows of a chunk of a benchmark


def features(rows: int, dimension: int, seed: int) -> torch.Tensor:
    """(rows, dimension) float32."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = 0.5 * torch.arange(1, dimension + 1) ** -0.45
    return 0.4 + 0.01 * seed + spectrum * torch.randn(rows, dimension, generator=generator)


def moments(rows: torch.Tensor):
    """Mean and covariance, streamed in chunks as a benchmark does."""
    running = RunningMoments(rows.shape[1])
    for chunk in rows.split(BATCH):
        running.update(chunk)
    return running.gaussian()


def pairs(folder: Path, count: int = 3000, dimension: int = 2048) -> Iterator[Pair]:
    """Scores of ``count`` rows each, then Inception on 32 images."""
    many = features(10_000, dimension, 0)
    yield Pair(
        f"moments of {len(many):,} x {dimension:,}", "torch-fidelity", lambda: moments(many),
        lambda: fid_features_to_statistics(many),
    )  # fmt: skip
    one, two = (features(count, dimension, seed) for seed in (0, 1))
    mine = [moments(rows) for rows in (one, two)]
    stats = [fid_features_to_statistics(rows) for rows in (one, two)]

    def frechet():
        mine[1].__dict__.pop("factor", None)  # as with a reference that was not used before
        return frechet_distance(*mine)

    yield Pair(
        f"FID from moments of {dimension:,}", "torch-fidelity", frechet,
        lambda: fid_statistics_to_metric(*stats, False),
    )  # fmt: skip
    sizes = {"kid_subsets": 20, "kid_subset_size": 1000, "verbose": False}
    yield Pair(
        "KID, 20 subsets of 1,000", "torch-fidelity", lambda: kernel_distance(one, two, 20),
        lambda: kid_features_to_metric(one, two, **sizes),
    )  # fmt: skip
    yield Pair(
        f"precision and recall, {count:,} rows", "torch-fidelity",
        lambda: precision_recall(one, two), lambda: prc_features_to_metric(one, two, verbose=False),
    )  # fmt: skip
    logits = 3 * torch.randn(count, 1008)
    yield Pair(
        f"inception score, {count:,} rows", "torch-fidelity", lambda: inception_score(logits),
        lambda: isc_features_to_metric(logits),
    )  # fmt: skip
    yield inception(folder)


def inception(folder: Path) -> Pair:
    """The graph with random weights: what it costs does not depend on them."""
    path = str(folder / "inception.pth")
    network = torchvision.models.inception_v3(
        weights=None, aux_logits=False, num_classes=1008, init_weights=False
    )
    torch.save(network.state_dict(), path)
    mine = build_inception(path)
    plain = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
    )
    images = torch.randint(0, 256, (32, 3, 64, 64), dtype=torch.uint8)
    return Pair(
        "Inception on 32 images", "torch-fidelity", lambda: mine(images),
        torch.no_grad()(lambda: plain(images)),
    )  # fmt: skip
