"""How fast, and in how much memory, latents come from shards.

    python scripts/bench/loader.py speed     4 shards of 1,024 x (32, 16, 16) float32, batch 256
    python scripts/bench/loader.py memory    20 GiB in sparse files, one epoch

``speed`` compares the loader of ucgm with opening each sample with ``safetensors.safe_open``, which
is how LightningDiT's and UCGM's published data sets read (one open and two slices per sample,
default collate), in the same process, on the same files, in turns.  Both read from the page cache:
the figures are the cost of the code, not of a disk.  A set this small is kept in memory;
larger ones are read with pread, which is the last column.
"""

import argparse
import json
import os
import statistics
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader, Dataset, RandomSampler

from ucgm.data.latents.codec import Codec
from ucgm.data.latents.shard_format import write_shard
from ucgm.data.loader import BatchPlan, batches
from ucgm.data.sets.latent_shards import LatentDataset

SHAPE = (32, 16, 16)
BATCH = 256


class OpenPerSample(Dataset):
    """Opens the file for every sample, as the published code does."""

    def __init__(self, folder):
        self.place = []
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                count = file.get_slice("labels").get_shape()[0]
            self.place += [(path, row) for row in range(count)]

    def __len__(self):
        return len(self.place)

    def __getitem__(self, index):
        path, row = self.place[index]
        with safe_open(path, framework="pt", device="cpu") as file:
            latent = file.get_slice("latents")[row : row + 1]
            label = file.get_slice("labels")[row : row + 1]
        return latent.squeeze(0), label.squeeze(0)


def describe(folder, records):
    """Codec and manifest of a set that nobody encoded."""
    zeros, ones = (0.0,) * SHAPE[0], (1.0,) * SHAPE[0]
    Codec("none", "kl", "", 256, SHAPE, "sample", "none", zeros, ones).save(folder)
    rows = sum(record["rows"] for record in records)
    manifest = {"num_classes": 1000, "classes": [], "rows": rows, "shards": records, "skipped": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def make_shards(folder, count=4, rows=1024):
    """Random latents on disk."""
    generator = torch.Generator().manual_seed(0)
    records = []
    for number in range(count):
        arrays = {
            "latents": torch.randn(rows, *SHAPE, generator=generator),
            "labels": torch.randint(0, 1000, (rows,), generator=generator),
        }
        records.append(write_shard(folder / f"shard_{number:05d}.safetensors", arrays))
    describe(folder, records)


def make_sparse(folder, gib=20, rows=4096):
    """Shards of zeros that take no space on disk."""
    size = rows * int(np.prod(SHAPE)) * 4
    header = {
        "latents": {"dtype": "F32", "shape": [rows, *SHAPE], "data_offsets": [0, size]},
        "labels": {"dtype": "I64", "shape": [rows], "data_offsets": [size, size + 8 * rows]},
    }
    text = json.dumps(header).encode()
    records = []
    for number in range(gib * 2**30 // size):
        path = folder / f"shard_{number:05d}.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + size + 8 * rows)
        records.append({"file": path.name, "rows": rows, "bytes": path.stat().st_size})
    describe(folder, records)


def rate(stream, count):
    """Samples per second over ``count`` batches, after two that are not counted."""
    for _ in range(2):
        next(stream)
    start = time.perf_counter()
    for _ in range(count):
        next(stream)
    return count * BATCH / (time.perf_counter() - start)


def published(folder, workers):
    """A long stream of the published way, so that the start of a worker is not timed."""
    dataset = OpenPerSample(folder)
    sampler = RandomSampler(dataset, replacement=True, num_samples=BATCH * 1000)
    return iter(DataLoader(dataset, BATCH, sampler=sampler, num_workers=workers))


def ours(folder, workers, kept=True):
    """An endless stream of ours."""
    plan = BatchPlan(BATCH, 1, 0, 1)
    dataset = LatentDataset(folder)
    assert dataset.rows.kept
    dataset.rows.kept = kept
    return batches(dataset, plan, seed=0, num_workers=workers)


def speed(folder, repeats):
    """Rates and their ratio, medians over ``repeats`` turns."""
    make_shards(folder)
    print(f"4 shards x 1,024 x {SHAPE} float32, batch {BATCH}, median of {repeats} turns")
    print("workers   open per sample       ucgm   ratio (lowest to highest)     pread   ratio")
    for workers in (0, 1):
        slow, fast, read = [], [], []
        for _ in range(repeats):
            slow.append(rate(published(folder, workers), 20))
            fast.append(rate(ours(folder, workers), 300))
            read.append(rate(ours(folder, workers, kept=False), 300))
        ratios = sorted(b / a for a, b in zip(slow, fast, strict=True))
        others = sorted(b / a for a, b in zip(slow, read, strict=True))
        print(
            f"{workers:7d}   {statistics.median(slow):13,.0f}/s {statistics.median(fast):8,.0f}/s"
            f"   {statistics.median(ratios):5.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
            f"{statistics.median(read):17,.0f}/s   {statistics.median(others):5.1f}"
        )


def memory(folder, workers):
    """Growth of resident memory over one epoch of a set that does not fit."""
    make_sparse(folder)
    process = psutil.Process()
    before = process.memory_info().rss
    dataset = LatentDataset(folder)
    opened = process.memory_info().rss
    stream = batches(dataset, BatchPlan(BATCH, 1, 0, 1), seed=0, num_workers=workers)
    for _ in range(4):
        next(stream)
    warm = {p.pid: p.memory_info().rss for p in (process, *process.children())}
    highest = dict(warm)
    start, steps = time.perf_counter(), len(dataset) // BATCH
    for _ in range(steps):
        next(stream)
        for p in (process, *process.children()):
            highest[p.pid] = max(highest.get(p.pid, 0), p.memory_info().rss)
    seconds = time.perf_counter() - start
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2**30
    growth = max(highest[pid] - warm.get(pid, 0) for pid in warm) / 2**20
    print(f"{size:.1f} GiB, {len(dataset):,} rows, {workers} workers, {steps} batches")
    print(f"opening:   {(opened - before) / 2**20:6.1f} MiB")
    print(f"one epoch: {growth:6.1f} MiB more in the process that grew most, above the 4th batch")
    print(f"all:       {(highest[os.getpid()] - before) / 2**20:6.1f} MiB in the main process")
    print(f"rate:      {steps * BATCH / seconds:,.0f}/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="of the memory test")
    parser.add_argument("--folder", help="where to put the files; a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.what == "speed":
            speed(Path(folder), options.repeats)
        else:
            memory(Path(folder), options.workers)


if __name__ == "__main__":
    main()
