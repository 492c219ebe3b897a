"""Shards as one list of rows, read by position.

Headers are read once; a row is then one ``pread`` into its place in the batch, in the order of the
disk.

Why not a memory map: its pages count as resident memory and an epoch maps the whole set, every
first touch is a page fault, and a file that shrinks under it kills the process.  ``pread`` uses the
same page cache, keeps nothing, and a short read is an error that can name the file.
"""

import bisect
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ucgm.data.shardfile import DTYPES, read_header

_OPEN_FILES = 256


class ShardSet:
    """Rows of many shards under one index; keeps O(shards) in memory, and labels once touched.

    Args:
        paths: the files, in the order of the rows.
        num_classes: labels must lie in [0, num_classes); None: any from 0.

    Attributes:
        row_shape: shape of one row.
        dtype: of a row.
        flips: whether all shards hold ``latents_flip``.
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
        self._ends = list(accumulate(shard.rows for shard in self.shards))
        self._labels: dict[int, np.ndarray] = {}
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return self._ends[-1]

    def __getstate__(self) -> dict[str, object]:
        """Everything but open files, which belong to a process."""
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for handle in getattr(self, "_files", {}).values():
            os.close(handle)

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
        batch = _empty((len(rows), *self.row_shape), self.dtype)
        slots = [memoryview(row) for row in batch.view(len(rows), -1).view(torch.uint8).numpy()]
        labels = np.empty(len(rows), dtype=np.int64)
        number, start, end = -1, 0, 0
        for slot in np.argsort(rows).tolist():
            row = int(rows[slot])
            if row >= end:
                number = bisect.bisect_right(self._ends, row)
                start, end = self._ends[number] - self.shards[number].rows, self._ends[number]
                file, own, arrays = (
                    self._file(number),
                    self.labels(number),
                    self.shards[number].arrays,
                )
            array = arrays["latents_flip" if flipped[slot] else "latents"]
            at = array.offset + (row - start) * array.row_bytes
            if os.preadv(file, (slots[slot],), at) != array.row_bytes:
                raise ValueError(
                    f"shard {self.shards[number].path} is truncated in row {row - start}."
                )
            labels[slot] = own[row - start]
        return batch, torch.from_numpy(labels)

    def labels(self, number: int) -> np.ndarray:
        """(n,) int32 labels of shard ``number``, checked when first read."""
        if number not in self._labels:
            shard = self.shards[number]
            content = self.read(number, "labels").numpy()
            limit = self.num_classes if self.num_classes is not None else 2**31
            bad = np.flatnonzero((content < 0) | (content >= max(limit, 1)))
            if len(bad):
                raise ValueError(
                    f"shard {shard.path}: label {content[bad[0]]} in row {bad[0]} is out of range "
                    f"({len(bad)} such rows); the classes are 0 to {max(limit, 1) - 1}."
                )
            self._labels[number] = content.astype(np.int32)
        return self._labels[number]

    def read(self, number: int, name: str, first: int = 0, count: int | None = None) -> Tensor:
        """Rows ``first`` to ``first + count`` of array ``name`` of shard ``number``."""
        shard = self.shards[number]
        array = shard.arrays[name]
        count = shard.rows - first if count is None else min(count, shard.rows - first)
        dtype = torch.int64 if name == "labels" else self.dtype
        rows = torch.empty((count, *array.shape[1:]), dtype=dtype)
        view = memoryview(rows.reshape(-1).view(torch.uint8).numpy())
        done, at = 0, array.offset + first * array.row_bytes
        while done < len(view):
            step = os.preadv(self._file(number), (view[done:],), at + done)
            if step == 0:
                raise ValueError(f"shard {shard.path} is truncated in {name}.")
            done += step
        return rows

    def _file(self, number: int) -> int:
        """The descriptor of a shard in this process; the longest open one makes room."""
        handle = self._files.get(number)
        if handle is None:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            try:
                handle = os.open(self.shards[number].path, os.O_RDONLY)
            except OSError as error:
                raise ValueError(f"shard {self.shards[number].path} has gone: {error}") from error
            self._files[number] = handle
        return handle


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty batch; in a loader process in shared memory, which saves the copy to get there."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    count = int(np.prod(shape))
    storage = torch.UntypedStorage._new_shared(count * dtype.itemsize, device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage, 0, (count,)).view(shape)
