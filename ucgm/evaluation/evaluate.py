"""``ucgm evaluate``: scores of images from anywhere; ``ucgm reference``: statistics of real ones.

Both run on chunks of features (:mod:`ucgm.evaluation.sweep`), as the benchmark does: on any number
of processes, restarted where they were stopped.  A reference keeps moments and a few rows alone.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ucgm.evaluation.chunks import CHUNK
from ucgm.evaluation.evaluators import Evaluators
from ucgm.evaluation.extractors import Extractors
from ucgm.evaluation.image_sets import ImageSet, open_images
from ucgm.evaluation.metrics import Reference, save_reference
from ucgm.evaluation.references import chosen_extractor, open_evaluators, prefixes
from ucgm.evaluation.report.tables import SEEN, aligned, column, label
from ucgm.evaluation.scoring import MetricConfig, Names
from ucgm.evaluation.sweep import FeatureExtraction
from ucgm.runtime.files import refuse_inside, write_atomic
from ucgm.runtime.processes import join_world
from ucgm.runtime.reading import check_fields, read_json

SHARD = 50_000


def evaluate(
    samples: str,
    metrics_config: MetricConfig,
    size: int | None = None,
    out_dir: str | Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """FID and its companions of images from anywhere.

    Args:
        samples: folder, zip or npz (arr_0) of images.
        metrics_config: what they are measured with; it names a reference.
        size: crop all images to this size; when left out they must have one size already.
        out_dir: where the result goes; a folder beside the samples when left out.
        device: cpu, cuda, ...; the fastest there is when left out.

    Returns:
        the content of ``evaluation.json`` and the folder; the folder alone on other processes than
        the first.
    """
    world = join_world(device)
    images = open_images(samples, size)
    folder = Path(out_dir or samples.rstrip("/") + ".evaluation")
    refuse_inside(folder, samples, "--out-dir")
    evaluators = open_evaluators(metrics_config, None, None, world.device)
    if images.labels is None:
        if "accuracy" in (metrics_config.metrics or ()):
            raise ValueError("accuracy cannot be computed: the images have no labels.")
        evaluators = evaluators.without("accuracy")
    evaluators = evaluators.enough(len(images), "images", "the result")
    evaluators.warn_if_few(len(images))
    sizes = {"num_samples": len(images), "chunk_size": CHUNK}
    protocol = {"samples": images.identity} | sizes | evaluators.identity() | _trained_on(samples)
    extraction = FeatureExtraction(evaluators.extractor, folder, CHUNK, world)
    result: dict[str, Any] = {"folder": str(folder)}
    with world.writes(folder, "ucgm evaluate"):
        extraction.claim(protocol)
        found = extraction.measure("images", images, torch.arange(len(images)))
        if found is not None:
            statistics, facts = found
            content = {
                "protocol": protocol,
                "references": evaluators.references(),
                "images_hash": facts["images_hash"],
                "scores": evaluators.score(statistics),
                "real": evaluators.real_scores(),
            }
            write_atomic(folder / "evaluation.json", json.dumps(content, indent=2) + "\n")
            _print(content, evaluators, len(images), folder)
            result = content | result
    return result


def _trained_on(samples: str) -> dict[str, Any]:
    """The encoders that the run of a folder of `ucgm sample` was trained on, for the protocol."""
    path = Path(samples) / "protocol.json"
    known = read_json(path).get("trained_on") if path.is_file() else None
    if known is not None:
        check_fields(known, [{"name": str, "sha256": str}], f"trained_on of {path}")
    return {"trained_on": known} if known else {}


def _print(content: dict[str, Any], evaluators: Evaluators, count: int, folder: Path) -> None:
    """The table of the scores, with those of held-out real images, and what they are made with."""
    heads = {name: (label(name, content), column(name)[1]) for name in evaluators.metrics}
    rows = {"images": content["scores"]} | ({"real": content["real"]} if content["real"] else {})
    cells = [
        [row, *(f"{s[k]:.{digits}f}" if k in s else "-" for k, (_, digits) in heads.items())]
        for row, s in rows.items()
    ]
    print("", aligned(["", *(head for head, _ in heads.values())], cells), "", sep="\n")
    for part in evaluators.parts:
        note = f" ({part.extractor.note})" * bool(part.extractor.note)
        used = f"extractor {part.extractor.name}{note}"
        print(f"{count:,} images against {part.reference.name}, {used}")
    if known := content["protocol"].get("trained_on"):
        print(f"{SEEN} the run was trained on {', '.join(one['name'] for one in known)}")
    print(f"report:  {folder}/evaluation.json")


def make_reference(
    data: str,
    out: str | Path,
    extractor: Names = None,
    extractor_weights: Names = None,
    size: int | None = None,
    num_rows: int = 10_000,
    name: str | None = None,
    shard_size: int = SHARD,
    device: str | None = None,
) -> Path:
    """Reference statistics of real images, in one npz that other tools read too.

    Several extractors see the images in one pass, and their statistics are in the one file.

    Args:
        data: folder, zip or npz of images, hub:OWNER/NAME, or digits, digits-test.
        out: the npz to write.
        extractor: inception, dinov2, clip, siglip, mae, convnext, random, digits, a registered name
            or module:function; inception when left out (random where its weights cannot be had),
            digits for the digits.
        extractor_weights: path of its weights, for each in the same order.
        size: scale and crop to this size, as the training data were.
        num_rows: feature rows to keep, evenly spaced, for KID, SW, precision and recall.
        name: what reports call it; the file's name when left out.
        shard_size: images between two points from which a stopped command goes on.
        device: cpu, cuda, ...; the fastest there is when left out.

    Returns:
        the path of the file.
    """
    path, world = Path(out), join_world(device)
    if path.suffix != ".npz":
        raise ValueError(f"a reference is an .npz, got {out}.")
    if num_rows < 0:
        raise ValueError(f"num_rows is {num_rows}: it must be 0 (keep none) or more.")
    refuse_inside(path, data, "out")
    with world.writes(path, "ucgm reference"):
        if path.exists():
            raise ValueError(f"{out} exists and was not overwritten: delete it or name another.")
        fitting = "digits" if data.startswith("digits") else "inception"
        chosen = MetricConfig(extractor=extractor, extractor_weights=extractor_weights).each()
        device = world.device if len(chosen) == 1 else "cpu"
        found = [chosen_extractor(one, fitting, weights, device) for one, weights, *_ in chosen]
        parts = dict(zip(prefixes([part.name for part in found]), found, strict=True))
        images = open_images(data, size)
        folder = path.with_name(path.name + ".parts")
        extraction = FeatureExtraction(Extractors(parts, world.device), folder, shard_size, world)
        _write_reference(path, name or path.stem, images, extraction, num_rows)
    return path


def _write_reference(
    path: Path, name: str, images: ImageSet, extraction: FeatureExtraction, num_rows: int
) -> None:
    """Measure ``images`` in parts, of which none is left when the file is there."""
    count, num_rows = len(images), min(num_rows, len(images))
    protocol = {"images": images.identity, "num_samples": count, "num_rows": num_rows}
    protocol |= {"shard_size": extraction.chunk_size}
    own = {
        prefix: {"extractor_spec": part.spec, "extractor_sha256": part.digest}
        for prefix, part in extraction.extractor.parts.items()
    }
    first, *more = own.values()
    extraction.claim(protocol | first | ({"more_extractors": more} if more else {}))
    kept = torch.arange(num_rows) * count // max(1, num_rows)
    found = extraction.measure("reference", images, torch.arange(count), kept)
    if found is None:
        return
    moments, made = found[0].moments, datetime.now(UTC).isoformat(timespec="seconds")
    references = {
        prefix: Reference(
            name,
            moments[prefix + "features"],
            digest="",
            spatial=moments.get(prefix + "spatial"),
            features=found[0].rows(prefix + "rows") if num_rows else None,
            extractor=(part.name, part.digest),
            protocol=protocol | own[prefix] | {"made": made},
        )
        for prefix, part in extraction.extractor.parts.items()
    }

    def write(temporary: Path) -> None:
        save_reference(temporary, references.pop(""), references)
        # The parts go with the temporary folder; half of them would be a folder of nobody.
        extraction.folder.rename(temporary.with_name("parts"))

    write_atomic(path, write)
    names = ", ".join(part.name for part in extraction.extractor.parts.values())
    print(f"reference: {path} ({count:,} images, extractor {names})")
