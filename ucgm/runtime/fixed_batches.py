"""Work in calls of one shape, so that the rounding of a row depends on its index alone.

A matrix product picks its kernel, and with it the order of its sums, by shape: the same sample in
a batch of 7 and in one of 50 differs in the last bits, and now and then in a pixel.  So rows are
worked on in *tiles*: a call has ``size`` rows, always, and the row with index i stands in slot

    slot(i) = i mod size

of it.  Rows of a tile may come from anywhere: consecutive indices fill tiles without a gap wherever
they start.  Slots that no row asks for hold other rows, whose results are dropped.  What a kernel
computes for a row does not depend on the *contents* of the other rows.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """The rows of a request that one call works on.

    Attributes:
        slots: (k,) int64, their rows in the call.
        rows: (k,) int64, their positions in the request.
    """

    slots: Tensor
    rows: Tensor

    def fill(self, filler: Tensor, values: Tensor) -> Tensor:
        """(size, ...): the ``values`` (n, ...) of this tile in their slots of ``filler``."""
        return filler.index_copy(0, self.slots, values[self.rows])


def tiles(indices: Tensor, size: int) -> Iterator[Tile]:
    """The tiles of ``indices`` (n,) int64, as few as there can be: ceil(n / size) for consecutive
    ones.
    """
    slot = indices % size
    order = slot.argsort(stable=True)
    counts = slot.bincount(minlength=size)
    number = torch.empty_like(slot)  # how many before it have its slot
    number[order] = torch.arange(len(slot)) - (counts.cumsum(0) - counts)[slot[order]]
    for k in range(int(counts.max())):
        rows = (number == k).nonzero().flatten()
        yield Tile(slot[rows], rows)


def by_tiles(indices: Tensor, size: int, work: Callable[[Tile], Tensor]) -> Tensor:
    """Results (n, ...) of ``indices`` (n,), n at least 1, from ``work(tile) -> (size, ...)``."""
    parts, rows = [], []
    for tile in tiles(indices, size):
        parts.append(work(tile)[tile.slots])
        rows.append(tile.rows)
    return torch.cat(parts)[torch.cat(rows).argsort()]


def whole_tiles(count: int, size: int) -> int:
    """``count`` rounded up to a multiple of ``size``."""
    return -(-count // size) * size
