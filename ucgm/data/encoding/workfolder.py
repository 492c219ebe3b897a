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
from ucgm.data.sets.latent_shards import MANIFEST_FILE, RECORD
from ucgm.runtime.files import claim_folder, write_atomic
from ucgm.runtime.reading import check_fields, read_json

PROGRESS = ".progress"
_RECORD = {**RECORD, "moments": list, "skipped": list}


def open_folder(folder: Path, job: Job) -> None:
    """Make ``folder`` that of ``job``; take over the shards of a finished or interrupted one.

    Raises:
        ValueError: it belongs to something else, cannot be written, or the disk is too small.
    """
    try:
        claim_folder(folder, job.protocol(), record="encode.json", option="--out")
        (folder / PROGRESS).mkdir(exist_ok=True)
        for number, record in enumerate(_finished(folder)):
            _write_record(folder, number, record)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error}. Choose another --out.") from error
    done = sum(p.stat().st_size for p in folder.glob("shard_*.safetensors"))
    if job.num_bytes() - done > free:
        raise ValueError(
            f"{folder} needs {(job.num_bytes() - done) / 1e9:.1f} GB more and its disk has "
            f"{free / 1e9:.1f} GB free: make room, leave flips out, or choose another --out."
        )


def _finished(folder: Path) -> list[Any]:
    """Records of a finished set, so that a lost shard alone is made again; none if damaged."""
    try:
        records = read_json(folder / MANIFEST_FILE).get("shards")
    except (FileNotFoundError, ValueError):
        return []
    return records if isinstance(records, list) else []


def _record_path(folder: Path, number: int) -> Path:
    return folder / PROGRESS / f"{number:05d}.json"


def _write_record(folder: Path, number: int, record: dict[str, Any]) -> None:
    write_atomic(_record_path(folder, number), json.dumps(record) + "\n")


def read_record(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of a shard that is there in full; None when it has to be made."""
    name = f"shard_{number:05d}.safetensors"
    try:
        record = read_json(_record_path(folder, number))
        check_fields(record, _RECORD, name)
        size = (folder / name).stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    return record if (record["file"], record["bytes"]) == (name, size) else None


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
    _write_record(folder, number, record)


def finish(folder: Path, job: Job) -> None:
    """Write codec and manifest from the records; call when every shard has one."""
    records = []
    for number in range(job.num_shards):
        record = read_record(folder, number)
        if record is None:
            raise ValueError(f"shard {number} has gone from {folder}: run the command again.")
        records.append(record)
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
    print(f"{manifest['rows']:,} rows in {len(records)} shards: {folder}\n{codec.describe()}")
    if skipped:
        print(f"{len(skipped)} items could not be read and are listed in {folder / MANIFEST_FILE}:")
        print("\n".join(f"  {name}: {reason}" for name, reason in skipped[:10]))
