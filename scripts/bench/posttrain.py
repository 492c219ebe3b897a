"""Time of a post-training step over that of a flow-matching step of the same batch, on the digits.

    python scripts/bench/posttrain.py [--batch 128] [--size T/2] [--seconds 10]

Both are draw, terms and backward of one network; the post-training step samples at 1 step, and has
the Frechet or kernel distance in the features of the shipped classifier (32 numbers) or of the
random network (64).
"""

import argparse
import statistics
from dataclasses import replace

import torch
from timing import Pair, compare

from ucgm.data import Digits
from ucgm.data.loader import BatchPlan
from ucgm.nn import DiTConfig
from ucgm.objective import Objective, SetTerm, preset
from ucgm.runs.config import Config
from ucgm.runs.settings import TrainConfig
from ucgm.runtime.randomness import RowRandom
from ucgm.sampler import Sampler
from ucgm.training.sets import SampleLosses

TERMS = {
    "fd, digits": SetTerm(extractor="digits", queue=5000),
    "fd, digits, averaged moments": SetTerm(extractor="digits", queue=5000, decay=0.999),
    "fd, random": SetTerm(extractor="random", queue=5000),
    "mmd, digits": SetTerm(extractor="digits", distance="mmd", queue=0),
    "drift, digits": SetTerm(extractor="digits", distance="drift"),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", default="T/2")
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data, device = Digits().open(), torch.device("cpu")
    x, y = data.__getitems__(range(asked.batch))
    network = DiTConfig(size=asked.size).build(data.shape, data.num_classes)
    plan = BatchPlan(asked.batch, 1, 0, 1)

    def step(objective: Objective, sets: SampleLosses | None) -> None:
        rows = torch.arange(asked.batch)
        draw = objective.draw(x, y, data.num_classes, RowRandom.for_rows(0, 0, rows))
        objective.terms(network, draw, sets=sets and sets.of_rows(0, rows)).loss.backward()
        network.zero_grad()

    flow = preset("flow_matching")
    print(f"{'post-training step':<32}{'over flow matching':>20}{'ms':>8}{'ms, flow':>10}")
    for name, term in TERMS.items():
        objective = preset("fd_post", sets=(term,))
        config = Config(
            objective=objective,
            sampler=Sampler(steps=1),
            train=replace(TrainConfig(), global_batch=asked.batch),
        )
        sets = SampleLosses(config, data, plan, device)
        sets.begin(network, device)
        found = compare(
            Pair(
                name,
                "flow_matching",
                lambda o=objective, s=sets: step(o, s),
                lambda: step(flow, None),
            ),
            asked.seconds,
        )
        ratio = statistics.median(found.processor)
        print(f"{name:<32}{ratio:>20.2f}{1e3 * found.ours_s:>8.0f}{1e3 * found.theirs_s:>10.0f}")


if __name__ == "__main__":
    main()
