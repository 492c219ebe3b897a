"""Passes and time of a training step of every preset, relative to plain flow matching.

Each round times one step (draw, terms, backward) of every preset in turn, so the ratios compare
steps made within the same second; the median over rounds is printed.

    python scripts/bench/presets.py [--rounds 15] [--batch 64]
"""

import argparse
import statistics
import time

import torch

from ucgm.nn import DiTConfig
from ucgm.objective import PRESETS, LogVariance, preset
from ucgm.objective.presets import count_passes
from ucgm.runtime.randomness import RowRandom


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", default="T/2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n = arguments.batch
    x, y = torch.randn(n, 1, 8, 8), torch.arange(n) % 10
    parts = {}
    for name in PRESETS:
        objective = preset(name)
        config = DiTConfig(size=arguments.size, **objective.network_inputs)
        networks = [config.build((1, 8, 8), 10) for _ in range(2)]
        parts[name] = (
            objective,
            *networks,
            LogVariance(two_time=objective.two_time) if objective.log_variance else None,
        )
    seconds: dict[str, list[float]] = {name: [] for name in PRESETS}
    for step in range(arguments.rounds + 2):
        for name, (objective, network, other, head) in parts.items():
            start = time.perf_counter()
            keys = RowRandom.for_rows(0, step, torch.arange(n))
            draw = objective.draw(x, y, 10, keys)
            loss = objective.terms(
                network, draw, target=other, teacher=other, log_variance=head
            ).loss
            loss.backward()
            network.zero_grad()
            if step >= 2:
                seconds[name].append(time.perf_counter() - start)
    base = seconds["flow_matching"]
    print(f"{'preset':<16}{'gradient':>9}{'forward':>9}{'tangent':>9}{'time':>8}")
    for name in PRESETS:
        counts = count_passes(preset(name))
        ratio = statistics.median(a / b for a, b in zip(seconds[name], base, strict=True))
        cells = "".join(f"{counts[k]:>9.2f}" for k in ("gradient", "forward", "tangent"))
        print(f"{name:<16}{cells}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
