"""One process of a benchmark of a small DiT in float32: OUT_DIR SECONDS_PER_CALL BATCH CHUNK."""

import os
import sys
import time
import warnings
from pathlib import Path

import torch

from tests.digits_oracle import make_run, perturbed_dit
from ucgm.evaluation.benchmark import benchmark
from ucgm.evaluation.scoring import MetricConfig
from ucgm.runtime.processes import join_world
from ucgm.sampler import Guidance

STEPS, COUNT, CHUNK = (1, 2), 1003, 70


class Slow(torch.nn.Module):
    def __init__(self, seconds):
        super().__init__()
        # large enough that a last bit becomes a pixel: 2 of 64,192 differ in plain batches of 7
        self.network, self.seconds = perturbed_dit("T/2", scale=0.1), seconds

    def forward(self, x_t, t, y, s=None):
        time.sleep(self.seconds)
        return self.network(x_t, t, y, s)


def work(out, seconds=0.0, world=None, batch=50, chunk=CHUNK):
    warnings.simplefilter("ignore")
    guidance = Guidance(scale=1.5, interval=(0.0, 0.6))  # one of the two steps
    run = make_run(Path(out).parent, Slow(seconds), guidance=guidance)
    return benchmark(
        run,
        STEPS,
        COUNT,
        ruler=MetricConfig(metrics=("fid", "accuracy")),
        out_dir=out,
        batch_size=batch,
        chunk_size=chunk,
        world=world,
    )


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    world = join_world("cpu")
    work(sys.argv[1], float(sys.argv[2]), world, int(sys.argv[3]), int(sys.argv[4]))
    world.leave()
