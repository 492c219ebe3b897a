"""Every call has one shape, and a row stands where its index says."""

import pytest
import torch
from torch import nn

from ucgm.evaluation.extractors import Extractor, Extractors
from ucgm.runtime.fixed_batches import by_tiles, tiles, whole_tiles


@pytest.mark.parametrize("first, count", [(0, 32), (0, 1003), (37, 33), (70, 70), (1000, 1)])
def test_consecutive_indices_fill_tiles_wherever_they_start(first, count):
    indices = torch.arange(first, first + count)
    found = list(tiles(indices, 32))
    assert len(found) == -(-count // 32)
    assert torch.cat([tile.rows for tile in found]).sort().values.tolist() == list(range(count))
    for tile in found:
        assert torch.equal(tile.slots, indices[tile.rows] % 32)
        assert len(tile.slots.unique()) == len(tile.slots)


def test_results_come_back_in_order():
    indices = torch.tensor([5, 37, 5, 1, 1003])  # one slot three times
    seen = []

    def work(tile):
        rows = tile.fill(torch.full((32,), -1), indices)
        seen.append(rows)
        return 2 * rows

    assert torch.equal(by_tiles(indices, 32, work), 2 * indices)
    assert len(seen) == 3 and all(len(rows) == 32 for rows in seen)
    assert [whole_tiles(n, 32) for n in (1, 32, 33)] == [32, 32, 64]


class Records(nn.Module):
    def __init__(self, width):
        super().__init__()
        generator = torch.Generator().manual_seed(width)
        self.weight = nn.Parameter(torch.randn(64, width, generator=generator))
        self.shapes = set()

    def forward(self, images):
        self.shapes.add(tuple(images.shape))
        return {"features": images.flatten(1).float() @ self.weight}


def test_features_depend_on_the_index_alone():
    images = torch.randint(0, 256, (103, 1, 8, 8), dtype=torch.uint8)
    modules = Records(512), Records(48)
    parts = [
        Extractor(name, "", module, {"features": width}, 1, batch_size=size)
        for name, module, width, size in zip("ab", modules, (512, 48), (16, 24), strict=True)
    ]
    both = Extractors({"": parts[0], "b.": parts[1]})
    assert both.dimensions == {"features": 512, "b.features": 48} and both.batch_size == 48
    indices = torch.arange(7, 110)
    whole = both(images, indices)
    for batch in (1, 7, 50):
        cut = [both(images[part], indices[part]) for part in torch.arange(103).split(batch)]
        for name, rows in whole.items():
            assert torch.equal(torch.cat([piece[name] for piece in cut]), rows)
    assert [module.shapes for module in modules] == [{(16, 1, 8, 8)}, {(24, 1, 8, 8)}]
