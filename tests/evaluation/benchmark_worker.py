"""One process of a benchmark of a small DiT in float32: OUT_DIR SECONDS_PER_CALL BATCH CHUNK."""

import os
import sys
import time
import warnings
from pathlib import Path

import torch

import ucgm.evaluation.benchmark as module
from tests.digits_oracle import make_run, perturbed_dit
from ucgm.evaluation.scoring import MetricConfig
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
    """Benchmark in the group of ``world``, or in that of the launcher."""
    warnings.simplefilter("ignore")
    if world is not None:
        module.join_world = lambda device: world
    guidance = Guidance(scale=1.5, interval=(0.0, 0.6))  # one of the two steps
    run = make_run(Path(out).parent, Slow(seconds), guidance=guidance)
    return module.benchmark(
        run,
        STEPS,
        COUNT,
        metrics_config=MetricConfig(metrics=("fid", "sw", "swr", "accuracy")),
        out_dir=out,
        batch_size=batch,
        chunk_size=chunk,
        device="cpu",
    )


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    work(sys.argv[1], float(sys.argv[2]), None, int(sys.argv[3]), int(sys.argv[4]))
