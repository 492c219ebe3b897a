"""``ucgm evaluate``: scores of images from anywhere; ``ucgm reference``: statistics of real ones.

Evaluating runs on the same chunks as the benchmark: any number of processes, restarted where it
was stopped.  A reference is made of shards, each the moments of 50,000 consecutive images and the
feature rows that are kept: shard k belongs to process k mod size, is written when it is finished
and never made again, and the first process merges all in order, so the file does not depend on the
number of processes.
"""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucgm.evaluation.chunks import CHUNK, Stopwatch, load_rows, save_rows
from ucgm.evaluation.extractors import Extractor, open_extractor
from ucgm.evaluation.image_sets import ImageSet, open_images
from ucgm.evaluation.metrics import Reference, RunningMoments, save_reference
from ucgm.evaluation.references import open_panel
from ucgm.evaluation.report.tables import aligned, column
from ucgm.evaluation.scoring import MetricConfig
from ucgm.evaluation.sweep import FeatureExtraction, consecutive
from ucgm.runtime.files import claim_folder, write_atomic
from ucgm.runtime.processes import Progress, World, join_world

SHARD = 50_000
MOMENTS = ("features", "spatial")


class StoredImages:
    """An image set as a source of chunks.

    Args:
        images: the set.
        batch_size: images read at a time.
    """

    network_rows = 0

    def __init__(self, images: ImageSet, batch_size: int = 250) -> None:
        self.set, self.batch_size = images, batch_size

    def batches(self, indices: Tensor, watch: Stopwatch) -> Iterator[Tensor]:
        """Images (B, C, H, W) of ``indices`` (n,) in order, reading timed as decoding."""
        for batch in indices.split(self.batch_size):
            with watch.time("decoder", len(batch)):
                images = self.set.images(batch)
            yield images

    def labels_at(self, indices: Tensor) -> Tensor:
        """Labels (n,) of the set at ``indices`` (n,); -1 where there are none."""
        labels = self.set.labels
        return torch.full_like(indices, -1) if labels is None else labels[indices]


def evaluate(
    images: ImageSet,
    ruler: MetricConfig,
    folder: Path,
    world: World | None = None,
    chunk: int = CHUNK,
) -> dict[str, Any]:
    """Scores of an image set; the result is also ``evaluation.json`` in ``folder``.

    Returns:
        the result; on other processes than the first, nothing but the folder.
    """
    world = world or World()
    panel = open_panel(ruler, None, None, world.device)
    if images.labels is None:
        if "accuracy" in (ruler.metrics or ()):
            raise ValueError("accuracy cannot be computed: the images have no labels.")
        panel = panel.without("accuracy")
    panel.warn_if_few(len(images))
    protocol = {
        "samples": images.identity,
        "num_samples": len(images),
        "chunk_size": chunk,
    } | panel.identity()
    if world.first:
        claim_folder(folder, protocol)
    world.wait()
    sweep = FeatureExtraction(panel.extractor, folder, chunk, world)
    sweep.clean()
    source = StoredImages(images)
    measured, facts = sweep.measure("images", source, consecutive(0, len(images)))
    if not world.first:
        return {"folder": str(folder)}
    result = {
        "protocol": protocol,
        "references": panel.references(),
        "images_hash": facts["images_hash"],
        "scores": panel.score(measured),
    }
    text = json.dumps(result, indent=2) + "\n"
    write_atomic(folder / "evaluation.json", text)
    first = panel.judges[0]
    heads = {name: column(name, first.extractor.name) for name in panel.metrics}
    cells = [f"{result['scores'][name]:.{digits}f}" for name, (_, digits) in heads.items()]
    print("", aligned([head for head, _ in heads.values()], [cells]), "", sep="\n")
    for judge in panel.judges:
        print(f"{len(images):,} images against {judge.reference.name}, extractor", end=" ")
        print(f"{judge.extractor.name} ({judge.extractor.note})")
    print(f"report:  {folder}/evaluation.json")
    return result | {"folder": str(folder)}


def make_reference(
    images: ImageSet,
    extractor: Extractor,
    out: Path,
    name: str,
    num_rows: int = 10_000,
    world: World | None = None,
    shard: int = SHARD,
) -> Path:
    """Write the statistics of an image set, see the head of this file.

    Args:
        images: the set.
        extractor: of the features.
        out: the npz to write.
        name: what reports call it.
        num_rows: feature rows to keep, evenly spaced, for KID, precision and recall.
        world: the processes.
        shard: images per shard.
    """
    world = world or World()
    count = len(images)
    protocol = {
        "images": images.identity,
        "num_samples": count,
        "extractor_sha256": extractor.digest,
        "num_rows": min(num_rows, count),
        "shard_size": shard,
    }
    folder = out.with_name(out.name + ".parts")
    if world.first:
        claim_folder(folder, protocol)
    world.wait()
    kept = torch.arange(protocol["num_rows"]) * count // max(1, protocol["num_rows"])
    parts = consecutive(0, count).split(shard)
    mine = world.share(range(len(parts)))
    progress = Progress(sum(len(parts[k]) for k in mine), "reference", silent=not world.first)
    for number in mine:
        path = folder / f"shard_{number:05d}.safetensors"
        if load_rows(path) is None:
            rows = _shard(images, extractor, parts[number], kept, progress)
            save_rows(path, rows, {})
        else:
            progress.skip(len(parts[number]))
    world.wait()
    if world.first:
        reference = _merge(folder, len(parts), extractor, name, protocol)
        write_atomic(out, lambda path: save_reference(path, reference))
        shutil.rmtree(folder)
        print(f"reference: {out} ({count:,} images, extractor {extractor.name})")
    return out


def _shard(
    images: ImageSet, extractor: Extractor, indices: Tensor, kept: Tensor, progress: Progress
) -> dict[str, Tensor]:
    """Moments of ``indices``, and the rows among them that are ``kept``."""
    names = [name for name in MOMENTS if name in extractor.dimensions]
    moments = {name: RunningMoments(extractor.dimensions[name]) for name in names}
    rows = []
    for batch in indices.split(extractor.batch_size):
        outputs = extractor(images.images(batch), batch)
        for name, running in moments.items():
            running.update(outputs[name])
        rows.append(outputs["features"][torch.isin(batch, kept)])
        progress.add(len(batch))
    state = {
        f"{name}.{key}": value
        for name, running in moments.items()
        for key, value in running.state().items()
    }
    return {**state, "rows": torch.cat(rows)}


def _merge(
    folder: Path, count: int, extractor: Extractor, name: str, protocol: dict[str, Any]
) -> Reference:
    """The reference of all shards, in order."""
    names = [key for key in MOMENTS if key in extractor.dimensions]
    total = {key: RunningMoments(extractor.dimensions[key]) for key in names}
    rows = []
    for number in range(count):
        path = folder / f"shard_{number:05d}.safetensors"
        found = load_rows(path)
        if found is None:
            raise ValueError(f"{path} is missing or damaged: run the same command again.")
        for key, running in total.items():
            keys = ("count", "sum", "lower")
            state = {part: found[0][f"{key}.{part}"] for part in keys}
            running.merge(RunningMoments.from_state(state))
        rows.append(found[0]["rows"])
    features = torch.cat(rows)
    return Reference(
        name=name,
        gaussian=total["features"].gaussian(),
        digest="",
        spatial=total["spatial"].gaussian() if "spatial" in total else None,
        features=features if len(features) else None,
        extractor=(extractor.name, extractor.digest),
        protocol=protocol | {"made": datetime.now(UTC).isoformat(timespec="seconds")},
    )


def evaluate_run(
    samples: str,
    ruler: MetricConfig,
    size: int | None = None,
    out_dir: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """FID and its companions of images from anywhere.

    Args:
        samples: folder, zip or npz (arr_0) of images.
        ruler: what they are measured with; it names a reference.
        size: crop all images to this size; when left out they must have one size already.
        out_dir: where the result goes; a folder beside the samples when left out.
        device: cpu, cuda, ...; the fastest there is when left out.

    Returns:
        the content of ``evaluation.json``.
    """
    world = join_world(device)
    beside = Path(samples.rstrip("/") + ".evaluation")
    folder = Path(out_dir) if out_dir else beside
    result = evaluate(open_images(samples, size), ruler, folder, world)
    world.leave()
    return result


def reference_run(
    data: str,
    out: str,
    extractor: str | None = None,
    extractor_weights: str | None = None,
    size: int | None = None,
    num_rows: int = 10_000,
    name: str | None = None,
    device: str | None = None,
) -> Path:
    """Reference statistics of real images, in one npz that other tools read too.

    Args:
        data: folder, zip or npz of images, hub:OWNER/NAME, or digits, digits-test.
        out: the npz to write.
        extractor: inception, dinov2, digits or a registered name; inception when left out, digits
            for the digits.
        extractor_weights: path of its weights.
        size: scale and crop to this size, as the training data were.
        num_rows: feature rows to keep, for KID, precision and recall.
        name: what reports call it; the file's name when left out.
        device: cpu, cuda, ...; the fastest there is when left out.

    Returns:
        the path of the file.
    """
    path = Path(out)
    if path.suffix != ".npz":
        raise ValueError(f"a reference is an .npz, got {out}.")
    if num_rows < 0:
        raise ValueError(f"num_rows is {num_rows}: it must be 0 (keep none) or more.")
    if path.exists():
        raise ValueError(f"{out} exists and was not overwritten: delete it or name another.")
    world = join_world(device)
    chosen = extractor or ("digits" if data.startswith("digits") else "inception")
    features = open_extractor(chosen, extractor_weights, world.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    make_reference(open_images(data, size), features, path, name or path.stem, num_rows, world)
    world.leave()
    return path
