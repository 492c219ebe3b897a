"""What calls of one shape cost and what they are for, see ucgm/runtime/fixed_batches.py.

    python scripts/bench/tiles.py [--size T/2] [--shape 1 8 8] [--count 1003] [--device cuda]

Plain: the sampler on batches as they come.  Tiled: `ucgm.generation.samples`.  Both run in turns,
in one process; a figure is the median of the ratios of neighbours.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from ucgm.data import DataSpec
from ucgm.generation.samples import SampleSet, SamplingConfig
from ucgm.nn import DiTConfig
from ucgm.runtime.fixed_batches import whole_tiles
from ucgm.runtime.randomness import RowRandom
from ucgm.sampler import Sampler

BATCHES = (7, 32, 50, 256)
TILES = (8, 16, 32, 64, 256)


@torch.no_grad()
def plain(samples, count, batch):
    """Latents of the first samples, in batches as they come."""
    parts = []
    for indices in torch.arange(count).split(batch):
        random = RowRandom.for_samples(0, indices)
        noise = random.normal(*samples.data.shape).to(samples.device)
        y = samples.labels_at(indices).to(samples.device)
        parts.append(samples.sampler(samples.network, noise, y))
    return torch.cat(parts)


def tiled(samples, count, batch):
    """The same in tiles."""
    parts = torch.arange(count).split(whole_tiles(batch, samples.settings.tile))
    return torch.cat([samples.latents(part) for part in parts])


def seconds(work, *arguments):
    start = time.perf_counter()
    work(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="T/2")
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 8, 8))
    parser.add_argument("--count", type=int, default=1003)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    shape, count = tuple(options.shape), options.count
    network = DiTConfig(size=options.size).build(shape, 10)
    for value in network.parameters():
        value.data += 0.1 * torch.randn_like(value)
    network = network.to(options.device).eval()
    data = DataSpec(shape=shape, num_classes=10).open()
    samples = SampleSet(network, Sampler(steps=options.steps), data, device=options.device)
    base, exact = plain(samples, count, 256), tiled(samples, count, 256)
    print(f"{count} samples {shape} of {options.size}, {options.steps} steps, {options.device}\n")
    print("batch   rows that differ from those of batches of 256: plain, tiled")
    for batch in BATCHES:
        moved = (plain(samples, count, batch) != base).flatten(1).any(dim=1).sum().item()
        again = (tiled(samples, count, batch) != exact).flatten(1).any(dim=1).sum().item()
        print(f"{batch:5d}   {moved:5d} {again:5d}")
    print("\n tile   rows computed / asked for   time / plain batches of 256")
    for tile in TILES:
        these = replace(samples, settings=SamplingConfig(tile=tile))
        tiled(these, count, 256)
        ratios = [
            seconds(tiled, these, count, 256) / seconds(plain, samples, count, 256)
            for _ in range(options.repeats)
        ]
        rows = whole_tiles(count, tile) / count
        print(f"{tile:5d}   {rows:25.3f}   {statistics.median(ratios):27.2f}", flush=True)


if __name__ == "__main__":
    main()
