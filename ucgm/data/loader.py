"""Batches as a pure function of (seed, step, rank, world): resuming is starting at a step.

The samples of a run are one endless sequence, the epochs' permutations one after another.
Position p = step * global_batch + i is row i of that step.  Rank r of W takes the contiguous rows
[r B / W, (r + 1) B / W), cut into ``accumulation`` micro-batches, so the union over ranks is the
same for any W, and no row is lost or repeated by a restart.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ucgm.data.source import Dataset


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

    def __init__(self, size: int, seed: int, plan: BatchPlan, start_step: int) -> None:
        self.size, self.seed, self.plan, self.start_step = size, seed, plan, start_step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            for micro in range(self.plan.accumulation):
                positions = step * self.plan.global_batch + self.plan.rows(micro)
                yield sample_indices(self.size, self.seed, positions).tolist()
            step += 1


def _as_is(batch: Any) -> Any:
    """A data set already hands out whole batches."""
    return batch


def batches(
    dataset: Dataset, plan: BatchPlan, seed: int, start_step: int = 0, num_workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Micro-batches (x, y) of this rank from ``start_step`` on, without end."""
    loader = DataLoader(
        dataset,
        batch_sampler=_StepSampler(len(dataset), seed, plan, start_step),
        num_workers=num_workers,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if num_workers else None,
    )
    return iter(loader)
