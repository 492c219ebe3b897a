"""One process of a benchmark, for the tests that kill and resume: OUT_DIR SECONDS_PER_BATCH."""

import sys
import time
import warnings
from pathlib import Path

import torch

from tests.digits_oracle import Affine, make_run
from ucgm.benchmark import benchmark
from ucgm.generate import Settings
from ucgm.processes import join_world
from ucgm.scoring import Ruler

STEPS, COUNT, BATCH, CHUNK = (1, 2), 1003, 32, 70


class Slow(Affine):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x_t, t, y, s=None):
        time.sleep(self.seconds)
        return super().forward(x_t, t, y, s)


def work(out, seconds=0.0, world=None):
    warnings.simplefilter("ignore")
    run = make_run(Path(out).parent, Slow(seconds))
    return benchmark(
        run,
        STEPS,
        COUNT,
        settings=Settings(precision="fp64"),
        ruler=Ruler(metrics=("fid", "accuracy")),
        out_dir=out,
        batch_size=BATCH,
        chunk_size=CHUNK,
        world=world,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = join_world("cpu")
    work(sys.argv[1], float(sys.argv[2]), world)
    world.leave()
