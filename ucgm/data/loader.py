"""Batches as a pure function of (seed, step, rank, world): resuming is starting at a step.

The samples of a run are one endless sequence, the epochs' permutations one after another.
Position p = step * global_batch + i is row i of that step.  Rank r of W takes the contiguous rows
[r B / W, (r + 1) B / W), cut into ``accumulation`` micro-batches, so the union over ranks is the
same for any W, and no row is lost or repeated by a restart.

Everything random has the key (seed, step, i) too: whether row i is flipped, and the noise by which
a row of moments becomes a sample.  Neither depends on the number of workers, and a set visited
twice shows other flips.  Flips are part of the index; moments are sampled where ``device`` says,
after the transfer.

Workers are threads: reading, decoding and resizing release the interpreter's lock, and a batch
need not cross from process to process, which costs more than reading it (and, in containers, a
shared memory that is always too small).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ucgm.data.dataset import Dataset
from ucgm.runtime.randomness import RowRandom

# Streams of the row keys that no objective comes near.
_FLIP_STREAM = 1 << 20
_PREPARE_STREAM = (1 << 20) + 1
_AHEAD = 2  # batches per worker
Wanted = TypeVar("Wanted")
Found = TypeVar("Found")


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**32)
    return torch.randperm(size, generator=generator)


def sample_indices(size: int, seed: int, positions: Tensor) -> Tensor:
    """The samples at ``positions`` (N,) int64 of the endless sequence over ``size`` samples."""
    epochs = positions // size
    indices = torch.empty_like(positions)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        indices[here] = _permutation(size, seed, epoch)[positions[here] % size]
    return indices


def flipped_rows(seed: int, step: int, rows: Tensor) -> Tensor:
    """(N,) bool: whether ``rows`` (N,) of the global batch of ``step`` are mirrored."""
    keys = RowRandom.for_rows(seed, step, rows).keys
    return RowRandom(keys, _FLIP_STREAM).uniform(1)[:, 0] < 0.5


class BatchPlan(NamedTuple):
    """How the global batch is cut."""

    global_batch: int
    accumulation: int
    rank: int
    world: int

    @property
    def micro_batch(self) -> int:
        """Rows of one forward pass on one process."""
        return self.global_batch // (self.world * self.accumulation)

    def check(self) -> "BatchPlan":
        """Refuse a global batch that does not divide."""
        parts = self.world * self.accumulation
        if self.global_batch % parts:
            raise ValueError(
                f"train.global_batch = {self.global_batch} cannot be cut into {self.world} "
                f"processes x {self.accumulation} accumulation steps; choose a multiple of {parts}"
            )
        return self

    def rows(self, micro: int) -> Tensor:
        """Rows of the global batch in micro-batch ``micro`` of this rank."""
        start = (self.rank * self.accumulation + micro) * self.micro_batch
        return torch.arange(start, start + self.micro_batch)


def batch_indices(
    dataset: Dataset, plan: BatchPlan, seed: int, step: int, rows: Tensor
) -> list[int]:
    """The samples, mirrored ones behind the others, of ``rows`` (N,) of the batch of ``step``."""
    found = sample_indices(len(dataset), seed, step * plan.global_batch + rows)
    if dataset.mirrored:
        found += len(dataset) * flipped_rows(seed, step, rows)
    return found.tolist()


def batches(
    dataset: Dataset,
    plan: BatchPlan,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Micro-batches of this rank from ``start_step`` on, without end.

    Args:
        dataset: where they come from.
        plan: how the global batch is cut.
        seed: of order, flips and posterior samples.
        start_step: optimizer step to begin with; going there costs nothing.
        num_workers: threads that read ahead; 0 reads when asked.
        device: where x is prepared (converted, normalised, sampled) and handed out; None: the CPU.

    Yields:
        x (B, C, H, W) float32 in the network's space, y (B,) int64.
    """
    where = torch.device(device or "cpu")

    def read(wanted: list[int]) -> tuple[Tensor, Tensor]:
        stored, y = dataset.read(wanted)
        return (stored.pin_memory(), y.pin_memory()) if where.type == "cuda" else (stored, y)

    def micro_batches() -> Iterator[tuple[int, Tensor]]:
        for step in itertools.count(start_step):
            for micro in range(plan.accumulation):
                yield step, plan.rows(micro)

    wanted = (batch_indices(dataset, plan, seed, *place) for place in micro_batches())
    stored = in_order(read, wanted, num_workers)
    for (step, rows), batch in zip(micro_batches(), stored, strict=True):
        values, y = (v.to(where, non_blocking=True) for v in batch)
        random = None
        if dataset.sampled:
            keys = RowRandom.for_rows(seed, step, rows).keys
            random = RowRandom(keys.to(where, non_blocking=True), _PREPARE_STREAM)
        yield dataset.prepare(values, random), y


def in_order(
    read: Callable[[Wanted], Found], wanted: Iterator[Wanted], num_workers: int
) -> Iterator[Found]:
    """``map(read, wanted)``, by threads and before it is asked for."""
    if num_workers == 0:
        yield from map(read, wanted)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="ucgm-loader")
    try:
        ahead = deque(pool.submit(read, w) for w in islice(wanted, _AHEAD * num_workers))
        while ahead:
            found = ahead.popleft().result()
            ahead.extend(pool.submit(read, w) for w in islice(wanted, 1))
            yield found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
