"""Images to latents: ``ucgm encode SOURCE --vae NAME --size 256 --out DIR``.

    DIR/encode.json                what is being made; another command is refused this folder
    DIR/shard_00012.safetensors    the rows
    DIR/.progress/00012.json       its record: rows, bytes, SHA-256, channel moments, skipped items
    DIR/features/shard_00012.safetensors   with --features, features of the same images
    DIR/codec.json, manifest.json  at the end, from the records, in the order of the shards

Items of the source are cut into shards of consecutive numbers; shard k belongs to process k mod
size, there is no collective in the loop, and a record is there only when its shard is whole.  So
the folder can be left and entered at any instant: the same command, on any number of processes,
continues after a kill.  Nothing in the folder depends on time, on the number of processes, or on
what was interrupted, so the finished folder is the same byte for byte.
"""

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ucgm.data.encoding.encoder import Batch, encode_rows, read_batch
from ucgm.data.encoding.job import Job, Recipe, make_job
from ucgm.data.latents.autoencoder import Store
from ucgm.data.latents.codec import CodecSettings
from ucgm.data.latents.shard_format import write_shard
from ucgm.data.latents.statistics import channel_moments, merge_moments
from ucgm.data.loader import in_order
from ucgm.data.sets.latent_shards import FEATURES, MANIFEST_FILE, RECORD, SKIPPED
from ucgm.data.sources.listing import open_source
from ucgm.runtime.files import claim_folder, refuse_inside, write_atomic
from ucgm.runtime.processes import Progress, World, join_world
from ucgm.runtime.reading import check_fields, read_json, read_yaml

PROGRESS = ".progress"
_MOMENTS = [tuple[int, tuple[float, ...], tuple[float, ...]]]  # count, mean, squares
_RECORD = {**RECORD, "moments": _MOMENTS, "skipped": SKIPPED}


def encode_data(
    source: str,
    vae: str | None = None,
    size: int | None = None,
    out: str | None = None,
    config: str | None = None,
    store: Store | None = None,
    normalise: str | None = None,
    flips: bool = True,
    dtype: Literal["float16", "float32"] = "float16",
    num_classes: int | None = None,
    split: str = "train",
    image_column: str = "image",
    label_column: str | None = "label",
    shard_size: int = 4096,
    batch_size: int = 32,
    num_workers: int = 4,
    seed: int = 0,
    features: str | None = None,
    features_weights: str | None = None,
    device: str | None = None,
) -> Path:
    """Encode images to latent shards with their codec and statistics, or go on doing so.

    Args:
        source: class folders, a zip, hub:OWNER/NAME, latent shards, or .npy moments.
        vae: autoencoder: sd-vae-ft-ema, vavae-f16d32, ..., identity, a folder, a file or a Hub id.
        size: side of the images in pixels; the crop is that of ADM.
        out: folder to make; the same command goes on after an interruption.
        config: a training configuration whose data.codec section gives vae, size, store, normalise.
        store: sample, mean or moments of the posterior; as published when left out.
        normalise: scale, channel, edm2, none or a statistics file; as published when left out.
        flips: encode mirrored images too.
        dtype: float16 or float32.
        num_classes: when the source does not say; labels must lie below.
        split: of a Hub data set.
        image_column: of a Hub data set.
        label_column: of a Hub data set; null: no classes.
        shard_size: items per shard.
        batch_size: images per forward pass.
        num_workers: threads that read, per process.
        seed: of posterior samples.
        features: extractor whose features are stored too, for alignment: dinov2, module:function.
        features_weights: file of its weights.
        device: cpu, cuda, ...; the fastest there is when left out.

    Returns:
        the folder.
    """
    if out is None:
        raise ValueError("--out is missing: name the folder to make.")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be float16 or float32, got {dtype!r}.")
    codec = codec_settings(config, vae=vae, size=size, store=store, normalise=normalise)
    rest = (shard_size, batch_size, seed, features, features_weights)
    recipe = Recipe(codec, flips, dtype, num_classes, *rest)
    world = join_world(device)
    refuse_inside(out, source, "--out")
    items = open_source(source, split, image_column, label_column)
    job = make_job(items, recipe, world.device)
    return run_job(job, Path(out), world, num_workers)


def codec_settings(config: str | None, **flags: Any) -> CodecSettings:
    """The data.codec section of a configuration file, with the flags that were given on top.

    Raises:
        ValueError: no such section, or neither a file nor ``--vae``.
    """
    settings = CodecSettings()
    if config is not None:
        try:
            content = read_yaml(Path(config))
            settings = CodecSettings(**content["data"]["init_args"]["codec"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--config {config} has no readable section data.init_args.codec: "
                + " ".join(f"{type(error).__name__} {error}".split())
            ) from error
    elif flags["vae"] is None:
        raise ValueError("--vae is missing: name the autoencoder, or give --config.")
    return replace(settings, **{name: v for name, v in flags.items() if v is not None})


def run_job(job: Job, folder: Path, world: World, num_workers: int) -> Path:
    """Make what is missing of ``job`` in ``folder``, on all processes.

    Raises:
        ValueError: the folder belongs to something else, or the disk is too small.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers must be at least 0, got {num_workers}.")
    with world.writes(folder, "ucgm encode"):
        if world.first:
            if job.asked.flips and not job.recipe.flips and job.recipe.dtype != "uint8":
                print(f"note: {job.source.where} has no mirrored latents, so none are stored.")
            claim_folder(folder, job.protocol(), record="encode.json", option="--out")
            (folder / PROGRESS).mkdir(exist_ok=True)
            free = shutil.disk_usage(folder).free
            done = sum(p.stat().st_size for p in folder.glob("shard_*.safetensors"))
            if job.num_bytes() - done > free:
                raise ValueError(
                    f"{folder} needs {(job.num_bytes() - done) / 1e9:.1f} GB more and its disk has "
                    f"{free / 1e9:.1f} GB free: make room, leave flips out, or choose another "
                    "--out."
                )
        world.wait()
        # Every process lists what is missing before any makes a new one: all share the same list.
        there = records_of(folder, job)
        missing = [number for number in range(job.num_shards) if number not in there]
        world.wait()
        _encode_shards(folder, job, world, missing, num_workers)
        world.wait()
        if world.first:
            finish(folder, job)
    return folder


def _encode_shards(
    folder: Path, job: Job, world: World, missing: Sequence[int], num_workers: int
) -> None:
    """Make the ``missing`` shards of this process: one stream of batches, one shard in memory."""
    plan = [(number, items) for number in world.share(missing) for items in job.batches(number)]
    recipe, channels = job.recipe, 2 * job.shape[0]

    def read(place: tuple[int, range]) -> Batch:
        return read_batch(job.source, place[1], recipe.codec.size, channels, recipe.flips)

    mine, whole = sum(len(items) for _, items in plan), sum(len(job.items(n)) for n in missing)
    progress = Progress(mine, "encoding", not world.first, whole)
    parts: list[dict[str, Tensor]] = []
    skipped: list[tuple[str, str]] = []
    read_ahead = in_order(read, iter(plan), num_workers)
    for (number, items), batch in zip(plan, read_ahead, strict=True):
        skipped += batch.skipped
        if len(batch.items):
            parts.append(encode_rows(job, batch, world.device))
        if items[-1] == job.items(number)[-1]:
            write_rows(folder, job, number, parts, skipped)
            parts, skipped = [], []
        progress.add(len(items))


def records_of(folder: Path, job: Job) -> dict[int, dict[str, Any]]:
    """Records of the shards that are there in full, by number; the others have to be made.

    Those of a finished set are in its manifest, so that a lost shard alone is made again.
    """
    known: dict[int, Any] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        known = dict(enumerate(read_json(folder / MANIFEST_FILE, {"shards": [{}]})["shards"]))
    found = {}
    for number in range(job.num_shards):
        name = f"shard_{number:05d}.safetensors"
        with contextlib.suppress(FileNotFoundError, ValueError):
            known[number] = read_json(folder / PROGRESS / f"{number:05d}.json")
        with contextlib.suppress(FileNotFoundError, ValueError):
            record = known.get(number, {})
            check_fields(record, _RECORD)
            files = {folder / name: record["bytes"]}
            if job.extractor is not None:
                files[folder / FEATURES / name] = record["features"]["bytes"]
            if record["file"] == name and all(p.stat().st_size == n for p, n in files.items()):
                found[number] = record
    return found


def write_rows(
    folder: Path, job: Job, number: int, parts: list[dict[str, Tensor]], skipped: list[Any]
) -> None:
    """Write shard ``number`` from the rows (n, ...) of its batches, then its record.

    Raises:
        ValueError: no item of the shard could be read, or the disk refuses.
    """
    if not parts:
        raise ValueError(
            f"none of the {len(skipped)} items from {skipped[0][0]} on can be read "
            f"({skipped[0][1]}): is {job.source.where} what you think it is?"
        )
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    of_features = {
        name.replace("features", "latents"): rows.pop(name)
        for name in ("features", "features_flip")
        if name in rows
    }
    name = f"shard_{number:05d}.safetensors"
    record = write_shard(folder / name, rows)
    if of_features:
        (folder / FEATURES).mkdir(exist_ok=True)
        beside = of_features | {"labels": rows["labels"]}
        record["features"] = write_shard(folder / FEATURES / name, beside)
    latents = [] if job.pixels else [rows[n] for n in ("latents", "latents_flip") if n in rows]
    moments = [channel_moments(part, job.store) for part in latents]
    record["moments"] = [[n, mean.tolist(), squares.tolist()] for n, mean, squares in moments]
    record["skipped"] = skipped
    write_atomic(folder / PROGRESS / f"{number:05d}.json", json.dumps(record) + "\n")


def finish(folder: Path, job: Job) -> None:
    """Write codec and manifest from the records; call when every shard has one."""
    found = records_of(folder, job)
    if lost := job.num_shards - len(found):
        raise ValueError(f"{lost} shards have gone from {folder}: run the command again.")
    records = [found[number] for number in range(job.num_shards)]
    f64 = torch.float64
    moments = [
        (count, torch.tensor(mean, dtype=f64), torch.tensor(squares, dtype=f64))
        for record in records
        for count, mean, squares in record["moments"]
    ]
    codec = job.codec(merge_moments(moments) if moments else None)
    skipped = [pair for record in records for pair in record["skipped"]]
    manifest = {
        "format": 1,
        "num_classes": job.recipe.num_classes,
        "classes": list(job.source.classes),
        "rows": sum(record["rows"] for record in records),
        "shards": records,
        "skipped": skipped,
    }
    if job.extractor is not None:
        manifest["features"] = job.extractor.identity()
    codec.save(folder)
    write_atomic(folder / MANIFEST_FILE, json.dumps(manifest, indent=1))
    shutil.rmtree(folder / PROGRESS)
    print(f"{manifest['rows']:,} rows in {len(records)} shards: {folder}\n{codec.describe()}")
    if skipped:
        print(f"{len(skipped)} items could not be read and are listed in {folder / MANIFEST_FILE}:")
        print("\n".join(f"  {name}: {reason}" for name, reason in skipped[:10]))
