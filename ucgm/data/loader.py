"""Batches as a pure function of (seed, step, rank, world): resuming is starting at a step.

The samples of a run are one endless sequence, the epochs' permutations one after another.
Position p = step * global_batch + i is row i of that step.  Rank r of W takes the contiguous rows
[r B / W, (r + 1) B / W), cut into ``accumulation`` micro-batches, so the union over ranks is the
same for any W, and no row is lost or repeated by a restart.

Everything random has the key (seed, step, i) too: whether row i is flipped, and the noise by which
a row of moments becomes a sample.  Neither depends on the number of loader processes, and a set
visited twice shows other flips.  Flips are part of the index, so they are decided in the main
process; moments are sampled where ``device`` says, after the transfer.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ucgm.data.source import Dataset
from ucgm.randomness import RowRandom

# Streams of the row keys that no objective comes near.
_FLIP_STREAM = 1 << 20
_PREPARE_STREAM = (1 << 20) + 1


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


class _StepSampler(Sampler[list[int]]):
    """Index lists of the micro-batches from ``start_step`` on, forever."""

    def __init__(self, dataset: Dataset, seed: int, plan: BatchPlan, start_step: int) -> None:
        self.size, self.mirrored = len(dataset), dataset.mirrored
        self.seed, self.plan, self.start_step = seed, plan, start_step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            for micro in range(self.plan.accumulation):
                rows = self.plan.rows(micro)
                positions = step * self.plan.global_batch + rows
                indices = sample_indices(self.size, self.seed, positions)
                if self.mirrored:
                    indices += self.size * flipped_rows(self.seed, step, rows)
                yield indices.tolist()
            step += 1


class _Reader(torch.utils.data.Dataset):
    """What a loader process needs of a data set: only its reading half."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.dataset.read(indices)


def _as_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


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
        num_workers: processes that read ahead; 0 reads in this one.
        device: where x is prepared (converted, normalised, sampled) and handed out; None: the CPU.

    Yields:
        x (B, C, H, W) float32 in the network's space, y (B,) int64.
    """
    loader = DataLoader(
        _Reader(dataset),
        batch_sampler=_StepSampler(dataset, seed, plan, start_step),
        num_workers=num_workers,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator().manual_seed(0),  # else every loader moves the global generator
    )
    return _prepared(dataset, plan, seed, start_step, iter(loader), torch.device(device or "cpu"))


def _prepared(
    dataset: Dataset,
    plan: BatchPlan,
    seed: int,
    step: int,
    stored: Iterator[tuple[Tensor, Tensor]],
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The second half of a batch, on the device."""
    while True:
        for micro in range(plan.accumulation):
            values, y = (v.to(device, non_blocking=True) for v in next(stored))
            keys = RowRandom.for_rows(seed, step, plan.rows(micro).to(device)).keys
            yield dataset.prepare(values, RowRandom(keys, _PREPARE_STREAM)), y
        step += 1
