"""What is in a data set: ``ucgm data DIR``, for shards, image folders and configurations alike.

    report.json   rows, classes, counts per class, channel statistics, codec, problems
    grid.png      decoded samples, spread evenly over the set

Every shard is read once in full: its checksum against the manifest, every latent finite, every
label in range.  The statistics are of normalised latents: mean 0 and deviation ``scale`` where the
codec normalises by channel, about 1 where it does not; far from that, shards and codec are not of
one set.  Problems are listed, and the command fails when there are any.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucgm.data.dataset import Dataset
from ucgm.data.encoding.encoder import channel_moments, merge_moments
from ucgm.data.latents.codec import Codec
from ucgm.data.latents.shard_format import read_header
from ucgm.data.latents.shards import ShardSet
from ucgm.data.pixels import UnreadableImage, grid, read_image
from ucgm.data.sets.image_folder import ImageDataset, Images
from ucgm.data.sets.latent_shards import MANIFEST_FILE, LatentDataset, read_manifest
from ucgm.runtime.files import sha256, write_atomic

_SLICE = 512  # rows in memory at a time


@dataclass
class Report:
    """What was found.

    Attributes:
        facts: JSON values, in the order of the report.
        problems: one line each.
    """

    facts: dict[str, Any]
    problems: list[str]


def describe_data(
    path: str, out: str | None = None, images: int = 64, size: int = 64, vae_path: str | None = None
) -> Path:
    """Describe and check a data set: counts per class, statistics, decoded samples, every shard.

    Args:
        path: folder made by `ucgm encode`, or images (class folders, a zip).
        out: folder of the report; DIR/description when left out.
        images: how many samples are decoded; 0 for none.
        size: side of the crop of images that are no shards.
        vae_path: where the autoencoder is, when not where the codec says.

    Returns:
        the folder of the report.
    """
    place = Path(path)
    shards = place.is_dir() and any(place.glob("*.safetensors"))
    report = _check_shards(place) if shards else _check_images(path, size)
    folder = Path(out) if out else (place if place.is_dir() else place.parent) / "description"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**report.facts, "problems": report.problems}, indent=1) + "\n"
        write_atomic(folder / "report.json", lambda p: p.write_text(text))
        if images and not (shards and report.problems):
            dataset: Dataset
            if shards:
                dataset = LatentDataset(place, vae_path, mirrored=False)
            else:
                dataset = Images(path, size, flips=False).open()
            _save_grid(dataset, folder / "grid.png", images)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}): choose another --out.") from error
    print("\n".join(_lines(report.facts)))
    print(f"report: {folder}")
    if report.problems:
        shown = "; ".join(report.problems[:5])
        raise ValueError(f"{len(report.problems)} problems in {path}: {shown}.")
    return folder


def _check_shards(folder: Path) -> Report:
    """Read every shard in full and compare it with manifest and codec."""
    manifest, codec = read_manifest(folder), Codec.load(folder)
    problems: list[str] = []
    counts = torch.zeros(max(manifest["num_classes"], 1), dtype=torch.int64)
    moments: list[tuple[int, Tensor, Tensor]] = []
    rows = 0
    for record in manifest["shards"]:
        path = folder / record["file"]
        try:
            header = read_header(path)
            shard = ShardSet([path], manifest["num_classes"])
            if tuple(shard.row_shape) != codec.stored_shape:
                raise ValueError(
                    f"shard {path} has rows of {tuple(shard.row_shape)}, the codec "
                    f"{codec.stored_shape}"
                )
            counts += torch.bincount(torch.from_numpy(shard.labels(0)), minlength=len(counts))
        except ValueError as error:
            problems.append(str(error).rstrip("."))
            continue
        rows += header.rows
        if header.rows != record["rows"]:
            problems.append(f"{record['file']} has {header.rows} rows of {record['rows']}")
        if sha256(path) != record["sha256"]:
            problems.append(f"{record['file']} is not what was written: delete it and encode again")
        moments += _shard_moments(shard, codec, record["file"], problems)
    known = {record["file"] for record in manifest["shards"]}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in known:
            problems.append(f"{path.name} is not in the manifest")
    facts = {
        "path": str(folder),
        "rows": rows,
        "shards": len(manifest["shards"]),
        "flips": all("latents_flip" in read_header(p).arrays for p in _there(folder, known)),
        "bytes": sum(p.stat().st_size for p in _there(folder, known)),
        "codec": codec.to_dict(),
        "codec_line": codec.describe(),
        "skipped": manifest["skipped"],
        **_class_facts(counts, manifest["num_classes"], manifest["classes"], problems),
    }
    if moments:
        mean, std = merge_moments(moments)
        facts["normalised_mean"], facts["normalised_std"] = mean.tolist(), std.tolist()
        _check_scale(mean, std, codec, problems)
    return Report(facts, problems)


def _there(folder: Path, names: set[str]) -> list[Path]:
    """The readable ones among ``names``."""
    paths = []
    for name in sorted(names):
        try:
            read_header(folder / name)
        except ValueError:
            continue
        paths.append(folder / name)
    return paths


def _shard_moments(
    shard: ShardSet, codec: Codec, name: str, problems: list[str]
) -> list[tuple[int, Tensor, Tensor]]:
    """Channel moments of normalised latents; adds rows that are not finite to ``problems``."""
    if codec.kind == "identity":
        return []
    parts = []
    for array in ("latents", "latents_flip")[: 1 + shard.flips]:
        for first in range(0, len(shard), _SLICE):
            stored = shard.read(0, array, first, _SLICE).float()
            bad = torch.nonzero(~torch.isfinite(stored).flatten(1).all(dim=1)).flatten().tolist()
            if bad:
                problems.append(f"{name}: {array} of row {first + bad[0]} are not finite")
                stored = stored[[i for i in range(len(stored)) if i not in set(bad)]]
            if not len(stored):
                continue
            if codec.store == "moments":
                raw, std = stored.chunk(2, dim=1)
                zero = codec.to_network(torch.zeros_like(std))
                stored = torch.cat((codec.to_network(raw), codec.to_network(std) - zero), dim=1)
            else:
                stored = codec.to_network(stored)
            parts.append(channel_moments(stored, codec.store))
    return parts


def _check_scale(mean: Tensor, std: Tensor, codec: Codec, problems: list[str]) -> None:
    """A data set normalised by its own channels has mean 0 and deviation ``scale``."""
    if codec.normalise != "channel":
        return
    off = max(float(mean.abs().max()), float((std / codec.scale - 1.0).abs().max()))
    if off > 0.01:
        problems.append(
            f"normalised latents have means up to {float(mean.abs().max()):.3g} and deviations "
            f"from {float(std.min()):.3g} to {float(std.max()):.3g} instead of 0 and "
            f"{codec.scale:g}: {MANIFEST_FILE} and codec.json are not of one set"
        )


def _check_images(path: str, size: int) -> Report:
    """Decode every file once."""
    dataset: ImageDataset = Images(path, size, flips=False).open()
    problems = []
    for item in range(len(dataset)):
        try:
            read_image(dataset.source.content_of(item), size)
        except (UnreadableImage, OSError) as error:
            problems.append(f"{dataset.source.entry(item)} cannot be read ({error})")
    counts = torch.bincount(
        torch.from_numpy(dataset.source.labels), minlength=max(dataset.num_classes, 1)
    )
    classes = list(dataset.class_names)
    facts = {
        "path": path,
        "rows": len(dataset),
        **_class_facts(counts, dataset.num_classes, classes, problems),
    }
    return Report(facts, problems)


def _class_facts(
    counts: Tensor, num_classes: int, names: list[str], problems: list[str]
) -> dict[str, Any]:
    """Counts per class, and classes without samples."""
    if num_classes == 0:
        return {"num_classes": 0}
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if empty:
        problems.append(f"{len(empty)} of {num_classes} classes are empty, first {empty[0]}")
    labelled = names or [str(k) for k in range(num_classes)]
    return {
        "num_classes": num_classes,
        "smallest_class": int(counts.min()),
        "largest_class": int(counts.max()),
        "counts": dict(zip(labelled, counts.tolist(), strict=True)),
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    """The report for people."""
    lines = [f"{facts['path']}: {facts['rows']:,} samples"]
    if "shards" in facts:
        flips = "with flips" if facts["flips"] else "without flips"
        lines[0] += f" in {facts['shards']} shards, {facts['bytes'] / 1e9:.2f} GB, {flips}"
        lines.append(f"codec: {facts['codec_line']}")
    if facts["num_classes"]:
        sizes = f"{facts['smallest_class']:,} to {facts['largest_class']:,} samples each"
        lines.append(f"classes: {facts['num_classes']}, {sizes}")
    else:
        lines.append("classes: none")
    if "normalised_mean" in facts:
        lines.append("channel   mean      std   (normalised)")
        pairs = zip(facts["normalised_mean"], facts["normalised_std"], strict=True)
        lines += [f"{k:7d} {mean:8.4f} {std:8.4f}" for k, (mean, std) in enumerate(pairs)]
    if facts.get("skipped"):
        lines.append(f"skipped when encoded: {len(facts['skipped'])}")
        lines += [f"  {name}: {reason}" for name, reason in facts["skipped"][:10]]
    return lines


def _save_grid(dataset: Dataset, path: Path, count: int) -> None:
    """Decoded samples in the order of the set: classes come one after another."""
    indices = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().long()
    sheet = grid(dataset.decode(dataset.__getitems__(indices)[0]))
    write_atomic(path, lambda p: sheet.save(p, format="PNG"))
