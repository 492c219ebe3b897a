"""One shard: rows of latents and labels in a safetensors file.

    latents       (n, C, h, w)  F16, F32, BF16 or U8     row i of the file
    latents_flip  (n, C, h, w)  the same for the image flipped left to right; may be absent
    labels        (n,)          I64

This is the layout of LightningDiT (hustvl/LightningDiT) and UCGM (LINs-lab/UCGM).  A safetensors
file is an 8-byte little-endian length, a JSON header, and the arrays, so row i of an array lies at
a known offset.
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ucgm.runtime.files import sha256, sync, write_atomic
from ucgm.runtime.reading import reading

DTYPES = {"F16": torch.float16, "F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
REMEDY = "copy it again, or run its `ucgm encode` again, which makes this shard anew."
_ALIGN = 4096


class Array(NamedTuple):
    """Where an array lies in its file."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    row_bytes: int


class Shard(NamedTuple):
    """The header of one file."""

    path: Path
    rows: int
    bytes: int
    arrays: dict[str, Array]


def read_header(path: Path) -> Shard:
    """Parse a shard's header; the library has checked it against the size of the file.

    Raises:
        ValueError: not readable, no safetensors, truncated, or without latents and labels of equal
            length.
    """
    try:
        with reading(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            safe_open(path, "np")
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"shard {error}: {REMEDY}") from error
    except OSError as error:
        raise ValueError(f"shard {error}") from error
    header.pop("__metadata__", None)
    arrays = {}
    for name, facts in header.items():
        (start, end), shape = facts["data_offsets"], tuple(facts["shape"])
        row_bytes = (end - start) // max(shape[0], 1) if shape else 0
        arrays[name] = Array(8 + length + start, facts["dtype"], shape, row_bytes)
    for name in ("latents", "labels"):
        if name not in arrays:
            raise ValueError(f"shard {path} has {sorted(arrays)}, and no {name}.")
    latents, labels = arrays["latents"], arrays["labels"]
    if latents.dtype not in DTYPES or len(latents.shape) != 4 or 0 in latents.shape:
        raise ValueError(
            f"shard {path}: latents are {latents.dtype} {latents.shape}; needed are four axes of "
            f"{', '.join(DTYPES)}, none of them empty."
        )
    if labels.dtype != "I64" or labels.shape != latents.shape[:1]:
        raise ValueError(
            f"shard {path}: labels are {labels.dtype} {labels.shape} beside latents "
            f"{latents.shape}; needed is one I64 per row."
        )
    flips = arrays.get("latents_flip", latents)
    if (flips.dtype, flips.shape) != (latents.dtype, latents.shape):
        raise ValueError(
            f"shard {path}: latents_flip {flips.shape} is not like latents {latents.shape}."
        )
    return Shard(path, labels.shape[0], size, arrays)


def write_shard(path: Path, arrays: dict[str, Tensor]) -> dict[str, object]:
    """Write arrays (rows, ...) of equal length as safetensors: verified, synced, and renamed.

    Returns:
        ``file``, ``rows``, ``bytes`` and ``sha256`` for the manifest.

    Raises:
        ValueError: the disk is full or not writable; the name then holds what it held before.
    """
    header, offset = {}, 0
    for name, value in arrays.items():
        size = value.numel() * value.element_size()
        kind = "I64" if name == "labels" else next(k for k, v in DTYPES.items() if v == value.dtype)
        header[name] = {
            "dtype": kind,
            "shape": list(value.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)  # the format allows spaces; rows start on a page
    pieces = [struct.pack("<Q", len(text)), text]
    pieces += [v.contiguous().reshape(-1).view(torch.uint8).numpy().data for v in arrays.values()]
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
        if sha256(temporary) != digest.hexdigest():
            raise OSError("what was read back differs from what was written")

    write_atomic(path, write)
    sync(path.parent)
    return {
        "file": path.name,
        "rows": len(arrays["labels"]),
        "bytes": path.stat().st_size,
        "sha256": digest.hexdigest(),
    }
