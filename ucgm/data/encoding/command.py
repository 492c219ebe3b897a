"""Images to latents: ``ucgm encode SOURCE --vae NAME --size 256 --out DIR``.

Items of the source are cut into shards of consecutive numbers; shard k belongs to process k mod
size, there is no collective in the loop, and a finished shard is a file with a record (see
:mod:`ucgm.data.encoding.workfolder`).  So the same command, on any number of processes, continues
after a kill.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ucgm.data.encoding.encoder import Batch, encode_rows, read_batch
from ucgm.data.encoding.job import Job, Recipe, make_job
from ucgm.data.encoding.workfolder import finish, open_folder, read_record, write_rows
from ucgm.data.latents.autoencoder import Store
from ucgm.data.latents.codec import CodecSettings
from ucgm.data.loader import in_order
from ucgm.data.sources.listing import open_source
from ucgm.runtime.files import refuse_inside
from ucgm.runtime.processes import Progress, World, join_world
from ucgm.runtime.reading import read_yaml


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
        device: cpu, cuda, ...; the fastest there is when left out.

    Returns:
        the folder.
    """
    if out is None:
        raise ValueError("--out is missing: name the folder to make.")
    if num_workers < 0:
        raise ValueError(f"num_workers must be at least 0, got {num_workers}.")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be float16 or float32, got {dtype!r}.")
    codec = codec_settings(config, vae=vae, size=size, store=store, normalise=normalise)
    recipe = Recipe(codec, flips, dtype, num_classes, shard_size, batch_size, seed)
    world = join_world(device)
    refuse_inside(out, source, "--out")
    items = open_source(source, split, image_column, label_column)
    job = make_job(items, recipe, world.device)
    if world.first and flips and not job.recipe.flips and job.recipe.dtype != "uint8":
        print(f"note: {source} has no mirrored latents, so none are stored.")
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
    """Make what is missing of ``job`` in ``folder``, on all processes."""
    with world.writes(folder, "ucgm encode"):
        if world.first:
            open_folder(folder, job)
        world.wait()
        # Every process lists what is missing before any makes a new one: all share the same list.
        missing = [n for n in range(job.num_shards) if read_record(folder, n) is None]
        world.wait()
        _encode_shards(folder, job, world, world.share(missing), num_workers)
        world.wait()
        if world.first:
            finish(folder, job)
    return folder


def _encode_shards(
    folder: Path, job: Job, world: World, numbers: Sequence[int], num_workers: int
) -> None:
    """Make the shards ``numbers``: one stream of batches, one shard in memory at a time."""
    plan = [(number, items) for number in numbers for items in job.batches(number)]
    recipe, channels = job.recipe, 2 * job.shape[0]

    def read(place: tuple[int, range]) -> Batch:
        return read_batch(job.source, place[1], recipe.codec.size, channels, recipe.flips)

    progress = Progress(sum(len(items) for _, items in plan), "encoding", not world.first)
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
