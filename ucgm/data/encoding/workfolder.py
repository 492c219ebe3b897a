"""The folder of an encoding, which can be left and entered at any instant.

    DIR/encode.json                what is being made; another command is refused this folder
    DIR/shard_00012.safetensors    the rows
    DIR/.progress/00012.json       its record: rows, bytes, SHA-256, channel moments, skipped items
    DIR/codec.json, manifest.json  at the end, from the records, in the order of the shards

A record is there only when its shard is whole.  Nothing in the folder depends on time, on the
number of processes, or on what was interrupted, so the finished folder is the same byte for byte.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucgm.data.encoding.job import Job
from ucgm.data.latents.shard_format import write_shard
from ucgm.data.latents.statistics import channel_moments, merge_moments
from ucgm.data.sets.latent_shards import MANIFEST_FILE
from ucgm.runtime.files import claim_folder, write_atomic

PROGRESS = ".progress"


def open_folder(folder: Path, job: Job) -> None:
    """Make ``folder`` that of ``job``; take over the shards of a finished or interrupted one.

    Raises:
        ValueError: it belongs to something else, cannot be written, or the disk is too small.
    """
    try:
        claim_folder(folder, job.protocol(), record="encode.json", option="--out")
        (folder / PROGRESS).mkdir(exist_ok=True)
        _unpack_manifest(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error}. Choose another --out.") from error
    done = sum(p.stat().st_size for p in folder.glob("shard_*.safetensors"))
    if job.num_bytes() - done > free:
        raise ValueError(
            f"{folder} needs {(job.num_bytes() - done) / 1e9:.1f} GB more and its disk has "
            f"{free / 1e9:.1f} GB free: make room, leave flips out, or choose another --out."
        )


def _unpack_manifest(folder: Path) -> None:
    """Turn a finished set back into records, so that a lost shard alone is made again."""
    try:
        records = json.loads((folder / MANIFEST_FILE).read_text())["shards"]
    except (FileNotFoundError, ValueError):
        return
    for number, record in enumerate(records):
        _write_record(folder, number, record)


def _record_path(folder: Path, number: int) -> Path:
    return folder / PROGRESS / f"{number:05d}.json"


def _write_record(folder: Path, number: int, record: dict[str, Any]) -> None:
    text = json.dumps(record) + "\n"
    write_atomic(_record_path(folder, number), text)


def read_record(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of a shard that is there in full; None when it has to be made."""
    try:
        record = json.loads(_record_path(folder, number).read_text())
        size = (folder / record["file"]).stat().st_size
    except (OSError, ValueError, KeyError):
        return None
    return record if size == record["bytes"] else None


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
    record = write_shard(folder / f"shard_{number:05d}.safetensors", rows)
    latents = [] if job.pixels else [rows[n] for n in ("latents", "latents_flip") if n in rows]
    moments = [channel_moments(part, job.store) for part in latents]
    record["moments"] = [[n, mean.tolist(), squares.tolist()] for n, mean, squares in moments]
    record["skipped"] = skipped
    try:
        _write_record(folder, number, record)
    except OSError as error:
        raise ValueError(f"the record of shard {number} could not be written: {error}") from error


def finish(folder: Path, job: Job) -> None:
    """Write codec and manifest from the records; call when every shard has one."""
    records = []
    for number in range(job.num_shards):
        records.append(read_record(folder, number))
        if records[-1] is None:
            raise ValueError(
                f"shard {number} has disappeared from {folder}: run the command again."
            )
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
    codec.save(folder)
    write_atomic(folder / MANIFEST_FILE, json.dumps(manifest, indent=1))
    shutil.rmtree(folder / PROGRESS)
    for left in folder.glob(".*.tmp"):
        left.unlink()
    print(f"{manifest['rows']:,} rows in {len(records)} shards: {folder}\n{codec.describe()}")
    if skipped:
        print(f"{len(skipped)} items could not be read and are listed in {folder / MANIFEST_FILE}:")
        print("\n".join(f"  {name}: {reason}" for name, reason in skipped[:10]))
