"""Shards as one list of rows, read by position.

Headers are read once; a row then goes straight to its place in the batch, in the order of the disk.
A set of up to 256 MiB is mapped into memory.  A larger one is read with ``pread``: pages of a map
count as resident memory and an epoch would map the whole set, every first touch is a page fault,
which makes it no faster than a call, and a file that shrinks under a map kills the process.
``pread`` uses the same page cache, keeps nothing, lets other threads run, and a short read is an
error that can name the file.
"""

import os
import resource
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ucgm.data.latents.shard_format import DTYPES, read_header

MAP_BELOW = 2**28  # bytes; a mapped row is copied twice as fast, once its pages are there


class Buffers:
    """Batch buffers that are used again when nothing refers to them any more.

    Fresh memory is paid for by a page fault per 4 kB, which costs more than the reading.

    Args:
        keep: how many are kept; more at a time are allocated and forgotten.
    """

    def __init__(self, keep: int = 8) -> None:
        self.keep, self._lock = keep, threading.Lock()
        self._pool: list[np.ndarray] = []

    def take(self, size: int) -> Tensor:
        """(size,) uint8 that no other batch uses."""
        with self._lock:
            for place in range(len(self._pool)):
                if len(self._pool[place]) == size and _references(self._pool, place) == _FREE:
                    return torch.from_numpy(self._pool[place])
            if len(self._pool) >= self.keep:
                self._pool.pop(0)
            self._pool.append(np.empty(size, dtype=np.uint8))
            return torch.from_numpy(self._pool[-1])


def _references(pool: list[np.ndarray], place: int) -> int:
    return sys.getrefcount(pool[place])


# A tensor of from_numpy, and every view of it, holds a reference to the array.  How many an array
# has that only the pool knows differs between versions of Python, so it is measured.
_FREE = _references([np.empty(0, dtype=np.uint8)], 0)


class ShardSet:
    """Rows of many shards under one index; keeps O(shards) in memory, and labels of opened shards.

    May be read from several threads.

    Args:
        paths: the files, in the order of the rows.
        num_classes: labels must lie in [0, num_classes); None: any from 0.

    Attributes:
        row_shape: shape of one row.
        dtype: of a row.
        flips: whether all shards hold ``latents_flip``.
        mapped: whether rows are copied from a memory map; set before the first read.
    """

    def __init__(self, paths: Sequence[Path], num_classes: int | None = None) -> None:
        if not paths:
            raise ValueError("there are no shards (*.safetensors).")
        self.shards = [read_header(path) for path in paths]
        self.num_classes = num_classes
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
        self.mapped = len(self) * self.row_bytes * (1 + self.flips) <= MAP_BELOW
        self._labels = np.empty(len(self), dtype=np.int32)  # no memory until a shard is opened
        self._opened = np.zeros(len(self.shards), dtype=bool)
        self._handles = np.full(len(self.shards), -1)
        self._maps: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self._buffers = Buffers()
        _allow_open_files(len(self.shards) * (1 + self.mapped))  # a map keeps a descriptor too

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._ends[-1])

    def __reduce__(self) -> tuple[type, tuple[list[Path], int | None]]:
        """Opened again by another process: files, maps, buffers and locks belong to one."""
        return ShardSet, ([shard.path for shard in self.shards], self.num_classes)

    def __del__(self) -> None:
        for handle in self.__dict__.get("_handles", ()):
            if handle >= 0:
                os.close(int(handle))

    def gather(self, rows: np.ndarray, flipped: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows in the order asked for, read in the order of the disk.

        Args:
            rows: (B,) int64, in [0, len).
            flipped: (B,) bool: take the row of ``latents_flip``.

        Returns:
            latents (B, C, h, w) as stored, labels (B,) int64.

        Raises:
            ValueError: a file has become shorter, or a label is out of range.
        """
        number = np.searchsorted(self._ends, rows, side="right")
        for n in np.unique(number[~self._opened[number]]).tolist():
            self.labels(n)
        offsets = self._offsets[flipped.astype(np.int64), number]
        offsets += (rows - self._starts[number]) * self.row_bytes
        order = np.lexsort((offsets, number))
        slots = self._buffers.take(len(rows) * self.row_bytes).view(len(rows), -1)
        self._copy(slots.numpy(), order.tolist(), number[order].tolist(), offsets[order].tolist())
        latents = slots.view(-1).view(self.dtype).view(-1, *self.row_shape)
        return latents, torch.from_numpy(self._labels[rows].astype(np.int64))

    def _copy(
        self, out: np.ndarray, slots: list[int], numbers: list[int], offsets: list[int]
    ) -> None:
        """Row at ``offsets[i]`` of shard ``numbers[i]`` to ``out[slots[i]]``."""
        size, mapped, maps, handles = self.row_bytes, self.mapped, self._maps, self._handles
        for slot, number, offset in zip(slots, numbers, offsets, strict=True):
            if mapped:
                out[slot] = maps[number][offset : offset + size]
            elif os.preadv(handles[number], (out[slot],), offset) != size:
                raise ValueError(f"shard {self.shards[number].path} has become shorter.")

    def labels(self, number: int) -> np.ndarray:
        """(n,) int32 labels of shard ``number``, which is opened and checked on the first visit."""
        path, rows = self.shards[number].path, slice(self._starts[number], self._ends[number])
        with self._lock:
            if self._opened[number]:
                return self._labels[rows]
            if self._handles[number] < 0:
                try:
                    self._handles[number] = os.open(path, os.O_RDONLY)
                except OSError as error:
                    raise ValueError(f"shard {path} has gone: {error}") from error
            content = self.read(number, "labels").numpy()
            count = 2**31 if self.num_classes is None else max(self.num_classes, 1)
            bad = np.flatnonzero((content < 0) | (content >= count))
            if len(bad):
                raise ValueError(
                    f"shard {path}: label {content[bad[0]]} in row {bad[0]} is out of range "
                    f"({len(bad)} such rows); the classes are 0 to {count - 1}."
                )
            if self.mapped:
                self._maps[number] = np.asarray(np.memmap(path, np.uint8, "r"))
            self._labels[rows] = content
            self._opened[number] = True
            return self._labels[rows]

    def read(self, number: int, name: str, first: int = 0, count: int | None = None) -> Tensor:
        """Rows ``first`` to ``first + count`` of array ``name`` of shard ``number``."""
        path, rows, arrays = self.shards[number]
        array, rest = arrays[name], rows - first
        rows = rest if count is None else min(count, rest)
        size, offset = rows * array.row_bytes, array.offset + first * array.row_bytes
        content = np.fromfile(path, np.uint8, size, offset=offset)
        if len(content) != size:
            raise ValueError(f"shard {path} has become shorter.")
        dtype = torch.int64 if name == "labels" else self.dtype
        return torch.from_numpy(content).view(dtype).view(rows, *array.shape[1:])


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
