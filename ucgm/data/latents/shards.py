"""Shards as one list of rows, read by position.

Headers are read once; a row then goes straight to its place in the batch, in the order of the disk.
A set of up to 256 MiB is kept in memory, shard by shard as they are visited, and copied from there
1.6 times as fast.  A larger one is read with ``pread``, which keeps nothing and lets other threads
run.  Neither is a map: a file that shrinks under a map ends the process with a signal, and here a
short read is an error that names the file.

The first visit reads a whole shard once, to compare it with its checksum (SHA-256, 1.6 GB/s on one
core): a flipped bit would train on unseen.
"""

import hashlib
import os
import resource
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ucgm.data.labels import check_labels
from ucgm.data.latents.shard_format import DTYPES, REMEDY, read_header

KEEP_BELOW = 2**28  # bytes of a set that is kept in memory


class ShardSet:
    """Rows of many shards under one index; may be read from several threads.

    Args:
        paths: the files, in the order of the rows.
        num_classes: labels must lie in [0, num_classes); None: any from 0.
        digests: SHA-256 of each file; None: not known, or not to be compared.

    Attributes:
        row_shape: shape of one row.
        dtype: of a row.
        flips: whether all shards hold ``latents_flip``.
        kept: whether shards stay in memory; set before the first read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        num_classes: int | None = None,
        digests: Sequence[str] | None = None,
    ) -> None:
        if not paths:
            raise ValueError("there are no shards (*.safetensors).")
        seen: dict[Path, Path] = {}
        for path in paths:
            if (other := seen.setdefault(path.resolve(), path)) is not path:
                raise ValueError(f"shard {path} is {other} once more: remove the link.")
        self.shards = [read_header(path) for path in paths]
        self.num_classes, self.digests = num_classes, digests
        first = self.shards[0].arrays["latents"]
        for shard in self.shards:
            other = shard.arrays["latents"]
            if (other.dtype, other.shape[1:]) != (first.dtype, first.shape[1:]):
                raise ValueError(
                    f"shard {shard.path} holds {other.dtype} {other.shape[1:]}, "
                    f"{self.shards[0].path} holds {first.dtype} {first.shape[1:]}."
                )
        self.row_shape = first.shape[1:]
        self.dtype = DTYPES[first.dtype]
        self.flips = all("latents_flip" in shard.arrays for shard in self.shards)
        self.row_bytes = first.row_bytes
        counts = np.array([shard.rows for shard in self.shards], dtype=np.int64)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._offsets = np.array(  # of the two arrays in each file
            [[s.arrays.get(n, (0,))[0] for s in self.shards] for n in ("latents", "latents_flip")]
        )
        self.kept = sum(shard.bytes for shard in self.shards) <= KEEP_BELOW
        self._labels = np.empty(len(self), dtype=np.int32)  # no memory until a shard is opened
        self._opened = np.zeros(len(self.shards), dtype=bool)
        self._handles = [-1] * len(self.shards)
        self._contents: dict[int, np.ndarray] = {}
        self._locks = [threading.Lock() for _ in self.shards]
        if not self.kept:
            _allow_open_files(len(self.shards))

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._ends[-1])

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Opened again by another process: files, contents and locks belong to one."""
        return ShardSet, ([shard.path for shard in self.shards], self.num_classes, self.digests)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for handle in self.__dict__.get("_handles", ()):
            if handle >= 0:  # at the end of the interpreter the module is gone before the set
                close(handle)

    def gather(self, rows: np.ndarray, flipped: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows in the order asked for, read in the order of the disk.

        Args:
            rows: (B,) int64, in [0, len).
            flipped: (B,) bool: take the row of ``latents_flip``.

        Returns:
            latents (B, C, h, w) as stored, labels (B,) int64.

        Raises:
            ValueError: a file has become shorter or is not what was written, or a label is out of
                range.
        """
        number = np.searchsorted(self._ends, rows, side="right")
        for n in np.unique(number[~self._opened[number]]).tolist():
            self.labels(n)
        offsets = self._offsets[flipped.astype(np.int64), number]
        offsets += (rows - self._starts[number]) * self.row_bytes
        order = np.lexsort((offsets, number))
        out, size = np.empty((len(rows), self.row_bytes), np.uint8), self.row_bytes
        where = zip(order.tolist(), number[order].tolist(), offsets[order].tolist(), strict=True)
        for slot, n, offset in where:
            if self.kept:
                out[slot] = self._contents[n][offset : offset + size]
            elif os.preadv(self._handles[n], (out[slot].data,), offset) != size:
                raise _shorter(self.shards[n].path)
        latents = torch.from_numpy(out).view(-1).view(self.dtype).view(-1, *self.row_shape)
        return latents, torch.from_numpy(self._labels[rows].astype(np.int64))

    def labels(self, number: int) -> np.ndarray:
        """(n,) int32 labels of shard ``number``, which is opened and checked on the first visit."""
        rows = slice(self._starts[number], self._ends[number])
        with self._locks[number]:
            if not self._opened[number]:
                self._open(number)
                labels, path = self._read(number, "labels", 0, None), self.shards[number].path
                self._labels[rows] = check_labels(
                    labels.numpy(), lambda row: f"row {row} of shard {path}", self.num_classes
                )
                self._opened[number] = True
        return self._labels[rows]

    def read(self, number: int, name: str, first: int = 0, count: int | None = None) -> Tensor:
        """Rows ``first`` to ``first + count`` of array ``name`` of shard ``number``."""
        self.labels(number)
        return self._read(number, name, first, count)

    def _open(self, number: int) -> None:
        """Open a shard, or take it into memory, and compare its size and checksum."""
        path = self.shards[number].path
        try:
            with path.open("rb", buffering=0) as file:
                if self.kept:
                    self._contents[number] = np.fromfile(file, np.uint8)
                size = os.fstat(file.fileno()).st_size
                if size < self.shards[number].bytes:
                    raise _shorter(path)
                if self.digests is not None:
                    if self.kept:
                        found = hashlib.sha256(self._contents[number].data).hexdigest()
                    else:
                        found = hashlib.file_digest(file, "sha256").hexdigest()
                    if found != self.digests[number]:
                        raise ValueError(
                            f"shard {path} is not what was written (SHA-256 {found[:12]}, in the "
                            f"manifest {self.digests[number]:.12}): delete it and {REMEDY}"
                        )
                if not self.kept and self._handles[number] < 0:
                    self._handles[number] = os.dup(file.fileno())
        except OSError as error:
            raise ValueError(f"shard {path} cannot be read: {error}") from error

    def _read(self, number: int, name: str, first: int, count: int | None) -> Tensor:
        path, rows, _, arrays = self.shards[number]
        array, rest = arrays[name], rows - first
        rows = rest if count is None else min(count, rest)
        size, offset = rows * array.row_bytes, array.offset + first * array.row_bytes
        if self.kept:
            content = self._contents[number][offset : offset + size]
        else:
            content = np.frombuffer(os.pread(self._handles[number], size, offset), np.uint8)
        if len(content) != size:
            raise _shorter(path)
        dtype = torch.int64 if name == "labels" else self.dtype
        return torch.from_numpy(content.copy()).view(dtype).view(rows, *array.shape[1:])


def _shorter(path: Path) -> ValueError:
    return ValueError(f"shard {path} has become shorter: {REMEDY}")


def _allow_open_files(count: int) -> None:
    """Make room for ``count`` descriptors beside those of the rest of the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise ValueError(
            f"{count} open shards are more than this system allows ({hard}): encode with a "
            "larger --shard-size, or raise the limit (ulimit -n)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
