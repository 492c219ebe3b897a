"""Memory that does not grow with the data.

python scripts/bench/memory.py loader               one epoch of 20 GiB, in sparse files
python scripts/bench/memory.py digits 5000 50000    benchmarks of so many images, a process each
python scripts/bench/memory.py matching 300 3000    matching to so many real images per class
"""

import argparse
import contextlib
import io
import json
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import torch
from loader import describe

from ucgm.data.loader import BatchPlan, batches
from ucgm.data.sets.latent_shards import LatentDataset
from ucgm.runtime.files import sha256

SHAPE, BATCH = (32, 16, 16), 256


def make_sparse(folder: Path, gib: int = 20, rows: int = 4096) -> None:
    """Shards of zeros that take no space on disk."""
    size = rows * int(np.prod(SHAPE)) * 4
    header = {
        "latents": {"dtype": "F32", "shape": [rows, *SHAPE], "data_offsets": [0, size]},
        "labels": {"dtype": "I64", "shape": [rows], "data_offsets": [size, size + 8 * rows]},
    }
    text = json.dumps(header).encode()
    records, digest = [], ""
    for number in range(gib * 2**30 // size):
        path = folder / f"shard_{number:05d}.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + size + 8 * rows)
        digest = digest or sha256(path)  # all are alike
        facts = {"rows": rows, "bytes": path.stat().st_size, "sha256": digest}
        records.append({"file": path.name} | facts)
    describe(folder, SHAPE, records)


def loader(folder: Path) -> None:
    """Growth of resident memory over one epoch of a set that does not fit."""
    make_sparse(folder)
    process = psutil.Process()
    before = process.memory_info().rss
    dataset = LatentDataset(folder)
    opened = process.memory_info().rss
    stream = batches(dataset, BatchPlan(BATCH, 1, 0, 1), seed=0)
    highest = warm = 0
    for step in range(4 + len(dataset) // BATCH):
        next(stream)
        highest = max(highest, process.memory_info().rss)
        warm = highest if step < 4 else warm
    print(f"{len(dataset):,} rows; opening {(opened - before) / 2**20:.1f} MiB, one epoch "
          f"{(highest - warm) / 2**20:.1f} MiB above the fourth batch")  # fmt: skip


def digits(samples: int) -> None:
    """Peak memory of a one-step benchmark above that of the loaded model."""
    import matplotlib.pyplot  # noqa: F401

    from ucgm.evaluation.benchmark import benchmark
    from ucgm.nn import DiTConfig
    from ucgm.runs.checkpoint import Run
    from ucgm.runs.config import Config

    network = DiTConfig(size="T/2").build((1, 8, 8), 10).eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        run = Run(Path(folder), Config(), network, 0, "ema", "0" * 64, (1, 8, 8), 10)
        network(torch.zeros(250, 1, 8, 8), torch.ones(250), torch.zeros(250, dtype=torch.int64))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with contextlib.redirect_stdout(io.StringIO()):
            benchmark(run, (1,), samples)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"benchmark of {samples:,} digits: peak {peak / 1024:,.0f} MiB above the model")


def matching(per_class: int) -> None:
    """Peak memory of five steps of matching to 32x32 images of ten classes, with their bytes."""
    from ucgm.condense.config import PRESETS, CondenseConfig
    from ucgm.condense.match import matched
    from ucgm.condense.pool import RealImages

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(per_class)
    shape = (len(labels), 3, 32, 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    real = RealImages("random", pixels, labels, tuple("0123456789"))
    config = CondenseConfig(**PRESETS["ncfm"] | {"match_steps": 5})
    start = real.of(torch.arange(0, len(labels), per_class // config.ipc))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        matched(start, real, config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"matching to {len(labels):,} images of {pixels.nbytes / 2**20:.0f} MiB: peak "
          f"{peak / 1024:,.0f} MiB above the start, {peak / 1024 - pixels.nbytes / 2**20:,.0f} "
          "without the images")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("loader", "digits", "matching"))
    parser.add_argument("counts", type=int, nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "loader":
        with tempfile.TemporaryDirectory() as folder:
            loader(Path(folder))
    elif len(options.counts) == 1:
        {"digits": digits, "matching": matching}[options.what](*options.counts)
    else:
        counts = options.counts or {"digits": [5000, 50_000], "matching": [300, 3000]}[options.what]
        for count in counts:
            subprocess.run([sys.executable, __file__, options.what, str(count)], check=True)


if __name__ == "__main__":
    main()
