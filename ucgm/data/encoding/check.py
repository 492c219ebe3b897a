"""What is in a data set: ``ucgm data DIR``, for shards and for images.

    report.json   rows, classes, counts per class, channel statistics, codec, problems
    grid.png      decoded samples, spread evenly over the set

Every shard is read once in full: its checksum against the manifest, every latent finite, every
label in range.  The statistics are of normalised latents: mean 0 and deviation ``scale`` where the
codec normalises by channel, about 1 where it does not; far from that, shards and codec are not of
one set.  Problems are listed, and the command fails when there are any.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucgm.data.labels import some_names
from ucgm.data.latents.codec import Codec
from ucgm.data.latents.shards import ShardSet
from ucgm.data.latents.statistics import channel_moments, merge_moments
from ucgm.data.pixels import UnreadableImage, center_crop, decode_image, grid
from ucgm.data.sets.image_folder import Images
from ucgm.data.sets.latent_shards import MANIFEST_FILE, Latents, read_manifest
from ucgm.runtime.files import refuse_inside, sha256, sole_writer, write_atomic

_SLICE = 512  # rows in memory at a time


def describe_data(
    path: str, out: str | None = None, images: int = 64, size: int = 64, vae_path: str | None = None
) -> Path:
    """Describe and check a data set: counts per class, statistics, decoded samples, every shard.

    Args:
        path: folder made by `ucgm encode`, or images (class folders, a zip).
        out: folder of the report, outside of PATH; PATH.description when left out.
        images: how many samples are decoded; 0 for none.
        size: side of the crop of images that are no shards.
        vae_path: where the autoencoder is, when not where the codec says.

    Returns:
        the folder of the report.
    """
    place = Path(path)
    shards = place.is_dir() and any(place.glob("*.safetensors"))
    problems: list[str] = []
    facts = _check_shards(place, problems) if shards else _check_images(path, size, problems)
    folder = Path(out or str(place.resolve()) + ".description")
    refuse_inside(folder, path, "--out")
    with sole_writer(folder, "ucgm data"):
        folder.mkdir(exist_ok=True)
        text = json.dumps({**facts, "problems": problems}, indent=1) + "\n"
        write_atomic(folder / "report.json", text)
        if images and not problems:
            latents, pixels = Latents(path, None, vae_path), Images(path, size, flips=False)
            dataset = (latents if shards else pixels).open()
            # Evenly over the set, in its order: classes come one after another.
            rows = torch.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().long()
            sheet = grid(dataset.decode(dataset.__getitems__(rows)[0]))
            write_atomic(folder / "grid.png", lambda p: sheet.save(p, format="PNG"))
    print("\n".join(_lines(facts)))
    print(f"report: {folder}/report.json")
    if (picture := folder / "grid.png").exists():
        print(f"picture: {picture}")
    if problems:
        found = f"{len(problems)} problem" + "s" * (len(problems) > 1)
        raise ValueError(f"{found} in {path}: {'; '.join(problems[:5])}.")
    return folder


def _check_shards(folder: Path, problems: list[str]) -> dict[str, Any]:
    """Read every shard in full and compare it with manifest and codec."""
    manifest, codec = read_manifest(folder), Codec.load(folder)
    counts = torch.zeros(max(manifest["num_classes"], 1), dtype=torch.int64)
    moments: list[tuple[int, Tensor, Tensor]] = []
    headers = []
    for record in manifest["shards"]:
        name, path = record["file"], folder / record["file"]
        try:
            shard = ShardSet([path], manifest["num_classes"])
            header = shard.shards[0]
            headers.append(header)
            if tuple(shard.row_shape) != codec.stored_shape:
                raise ValueError(
                    f"shard {path} has rows of {tuple(shard.row_shape)}, the codec "
                    f"{codec.stored_shape}"
                )
            counts += torch.bincount(torch.from_numpy(shard.labels(0)), minlength=len(counts))
        except ValueError as error:
            problems.append(str(error).rstrip("."))
            continue
        if header.rows != record["rows"]:
            problems.append(f"{name} has {header.rows} rows of {record['rows']}")
        if sha256(path) != record["sha256"]:
            problems.append(f"{name} is not what was written: delete it and encode again")
        moments += _shard_moments(shard, codec, name, problems)
    known = {record["file"] for record in manifest["shards"]}
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in known)
    problems += [f"{name} is not in the manifest" for name in others]
    facts = {
        "path": str(folder),
        "rows": int(counts.sum()),
        "shards": len(manifest["shards"]),
        "flips": all("latents_flip" in header.arrays for header in headers),
        "bytes": sum(header.bytes for header in headers),
        "codec": codec.to_dict(),
        "codec_line": codec.describe(),
        "skipped": manifest["skipped"],
        **_class_facts(counts, manifest["num_classes"], manifest["classes"], problems),
    }
    if moments:
        mean, std = merge_moments(moments)
        centre, spread = torch.tensor([codec.mean, codec.std], dtype=torch.float64)
        mean, std = (mean - centre) / spread * codec.scale, std / spread * codec.scale
        facts["normalised_mean"], facts["normalised_std"] = mean.tolist(), std.tolist()
        off = max(float(mean.abs().max()), float((std / codec.scale - 1.0).abs().max()))
        if codec.normalise == "channel" and off > 0.01:
            problems.append(
                f"normalised latents have means up to {float(mean.abs().max()):.3g} and deviations "
                f"from {float(std.min()):.3g} to {float(std.max()):.3g} instead of 0 and "
                f"{codec.scale:g}: {MANIFEST_FILE} and codec.json are not of one set"
            )
    return facts


def _shard_moments(
    shard: ShardSet, codec: Codec, name: str, problems: list[str]
) -> list[tuple[int, Tensor, Tensor]]:
    """Channel moments of raw latents; adds rows that are not finite to ``problems``."""
    if codec.kind == "identity":
        return []
    parts = []
    for array in ("latents", "latents_flip")[: 1 + shard.flips]:
        for first in range(0, len(shard), _SLICE):
            stored = shard.read(0, array, first, _SLICE).float()
            finite = torch.isfinite(stored).flatten(1).all(dim=1)
            if not finite.all():
                bad = first + int(torch.nonzero(~finite)[0])
                problems.append(f"{name}: {array} of row {bad} are not finite")
                stored = stored[finite]
            if len(stored):
                parts.append(channel_moments(stored, codec.store))
    return parts


def _check_images(path: str, size: int, problems: list[str]) -> dict[str, Any]:
    """Decode every file once."""
    dataset = Images(path, size, flips=False).open()
    source, sides = dataset.source, set()
    for item in range(len(source)):
        try:
            image = decode_image(source.content_of(item))
            center_crop(image, size)
            sides.add(min(image.size))
        except (UnreadableImage, OSError) as error:
            problems.append(f"{source.entry(item)} cannot be read ({error})")
    counts = torch.bincount(torch.from_numpy(source.labels), minlength=max(dataset.num_classes, 1))
    classes = _class_facts(counts, dataset.num_classes, source.classes, problems)
    return {"path": path, "rows": len(source), "sides": sorted(sides), **classes}


def _class_facts(
    counts: Tensor, num_classes: int, names: Sequence[str], problems: list[str]
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
    elif sides := facts["sides"]:
        lines[0] += f", {sides[0]}" + f" to {sides[-1]}" * (len(sides) > 1)
        lines[0] += " pixels on the shorter side"
    if facts["num_classes"]:
        least, most = facts["smallest_class"], facts["largest_class"]
        sizes = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        lines.append(f"classes: {facts['num_classes']}, {sizes} samples each")
        lines.append(f"  {some_names(list(facts['counts']))}")
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
