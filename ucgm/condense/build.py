"""From a pool of candidates to a condensed set: judged, selected, stitched, matched, labelled."""

import time
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ucgm.condense.condensed import CondensedSet, decoded
from ucgm.condense.config import CondenseConfig
from ucgm.condense.match import matched
from ucgm.condense.observe import Observer
from ucgm.condense.patches import crops, embed, stitch
from ucgm.condense.pool import Pool, RealImages
from ucgm.condense.select import apportioned, select
from ucgm.condense.students import SoftLabels, store_labels
from ucgm.data.pixels import from_uint8, to_uint8
from ucgm.evaluation.metrics.reference import digest_of
from ucgm.runtime.files import plain
from ucgm.runtime.processes import Progress


class Candidates(NamedTuple):
    """Of one class: patches (n, C, h, h) in [-1, 1], losses (n,), features (n, d), names, and how
    many were looked at and accepted.
    """

    patches: Tensor
    losses: Tensor
    features: Tensor
    names: list[str]
    seen: int
    accepted: int


def gather(
    pool: Pool, label: int, count: int, observer: Observer, config: CondenseConfig
) -> Candidates:
    """Candidates for ``count`` images of a class, each by its best crop; accepted ones alone where
    that is asked for.

    Raises:
        ValueError: fewer than the set needs.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + label)
    needed = count * config.factor**2
    wanted = max(needed, config.pool_per_class)
    parts: list[Candidates] = []
    seen = kept = 0
    while kept < wanted and seen < config.max_rounds * wanted:
        images, called = pool.candidates(label, seen, wanted - kept)
        if not len(called):
            break
        seen += len(called)
        found = _judged(from_uint8(images), called, label, observer, config, generator)
        parts.append(found)
        kept += len(found.names)
        if not config.accept:
            break
    if kept < needed:
        raise ValueError(
            f"class {label} has {kept} candidates of the {needed} that {count} images need, "
            f"of {seen} that were looked at: lower ipc, raise max_rounds"
            + (", or take all with --accept false" if config.accept else "")
        )
    rows = (part[:3] for part in parts)
    patches, losses, features = (torch.cat(column) for column in zip(*rows, strict=True))
    names = [name for part in parts for name in part.names]
    return Candidates(patches, losses, features, names, seen, kept)


def _judged(
    images: Tensor,
    names: list[str],
    label: int,
    observer: Observer,
    config: CondenseConfig,
    generator: torch.Generator,
) -> Candidates:
    """The best crop of every image (n, C, H, W) in [-1, 1], and what the observer says of it."""
    size = images.shape[-1]
    if config.crops == 1 and config.factor == 1:
        patches = shown = images
    else:
        if size % config.factor:
            raise ValueError(f"images of {size} pixels do not divide into {config.factor} parts")
        side = size // config.factor
        found = crops(images, config.crops, config.crop_scale, side, generator)
        logits, _ = observer(embed(found.flatten(0, 1), size))
        loss = -logits.log_softmax(1)[:, label].view(len(images), config.crops)
        patches = found[torch.arange(len(images)), loss.argmin(1)]
        shown = embed(patches, size)
    logits, features = observer(shown)
    losses = -functional.log_softmax(logits, 1)[:, label]
    right = torch.ones(len(names), dtype=torch.bool)
    if config.accept:
        right = logits.argmax(1) == label
    kept = [name for name, good in zip(names, right.tolist(), strict=True) if good]
    return Candidates(patches[right], losses[right], features[right], kept, len(names), len(kept))


def condense_pool(
    pool: Pool,
    real: RealImages,
    observer: Observer,
    config: CondenseConfig,
    facts: dict[str, Any] | None = None,
) -> CondensedSet:
    """The condensed set of a pool.

    Args:
        pool: of candidates.
        real: images of the same classes; they check the observer, and give the means of herding
            and of matching.
        observer: judges, and labels.
        config: how.
        facts: more for the manifest.
    """
    begin = time.perf_counter()
    accuracy = observer.check(real, config.min_accuracy)
    classes = len(real.class_names)
    counts = _counts(real, observer, config)
    images, names, seen, accepted = [], [], 0, 0
    progress = Progress(classes, "condensing", unit="classes")
    for label, count in enumerate(counts):
        found = gather(pool, label, count, observer, config)
        seen, accepted = seen + found.seen, accepted + found.accepted
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + label + 500_000)
        mean = None
        if config.selector == "herding":
            features = _seen(real, label, observer)[1]
            mean = functional.normalize(features.double(), dim=1).mean(0)
        kept = count * config.factor**2
        rows = select(config.selector, found.losses, found.features, kept, generator, mean)
        images.append(to_uint8(stitch(found.patches[rows], config.factor)))
        names += [[found.names[r] for r in rows[i::count]] for i in range(count)]
        progress.add(1)
    labels = torch.arange(classes).repeat_interleave(torch.tensor(counts))
    chosen = RealImages(real.name, torch.cat(images), labels, real.class_names)
    selected = time.perf_counter() - begin
    if config.match != "none":
        chosen = replace(chosen, pixels=matched(chosen, real, config))
    soft = _soft(chosen, observer, config) if config.labels == "stored" else None
    manifest = {
        "settings": plain(asdict(config)),
        "pool": pool.identity(),
        "observer": observer.identity() | {"accuracy": accuracy},
        "classes": list(real.class_names),
        "shape": list(real.shape),
        "images_per_class": counts,
        "pixels_sha256": digest_of(chosen.pixels),
        "candidates": names,
        "looked_at": seen,
        "accepted": accepted,
        "seconds": {"selection": selected, "all": time.perf_counter() - begin},
    }
    return CondensedSet(chosen, soft, observer, manifest | (facts or {}))


def _soft(images: RealImages, observer: Observer, config: CondenseConfig) -> SoftLabels:
    """Stored labels of a set."""
    generator = torch.Generator().manual_seed(config.seed)
    x, _ = decoded(from_uint8(images.pixels), images.labels, config.factor)
    return store_labels(x, config.label_views, images.mirrored, observer.logits, generator)


def _counts(real: RealImages, observer: Observer, config: CondenseConfig) -> list[int]:
    """How many images of every class the set has."""
    classes = len(real.class_names)
    if config.per_class == "equal":
        return [config.ipc] * classes
    sure = [_seen(real, k, observer)[0].double().softmax(1)[:, k].mean() for k in range(classes)]
    return apportioned([1 - float(share) for share in sure], classes * config.ipc)


def _seen(real: RealImages, label: int, observer: Observer) -> tuple[Tensor, Tensor]:
    """Logits (n, K) and features (n, d) of real images of a class, at most 1,000."""
    return observer(from_uint8(real.pixels[torch.nonzero(real.labels == label)[:1000, 0]]))
