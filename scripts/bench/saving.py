"""How long a checkpoint delays the training: the copy to the host, against the whole writing.

    python scripts/bench/saving.py [--size S/2] [--rounds 5] [--folder DIR]

Network, average and AdamW's two moments of a DiT, saved by the two ways in turn: with the thread,
and waiting for it.  The folder decides what the disk is.
"""

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ucgm.nn import DiTConfig
from ucgm.runs.saving import Writer, host_copies, optimizer_state, save_checkpoint
from ucgm.training.ema import EMA


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="S/2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = DiTConfig(size=options.size).build((4, 32, 32), 1000).to(device)
    average = EMA(network, 0.999)
    names = {p: name for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(list(names), fused=True)
    for p in names:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    delays, waits = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        writer = Writer(Path(folder))
        for step in range(2 * options.rounds + 2):
            start = time.perf_counter()
            values = {
                "network": network.state_dict(),
                "ema": average.network.state_dict(),
                "optimizer": optimizer_state(optimizer, names),
            }
            states = {name: host_copies(state) for name, state in values.items()}
            job = functools.partial(save_checkpoint, Path(folder), step, states, {}, 1)
            writer.submit(job)
            if device.type == "cuda":
                torch.cuda.current_stream().synchronize()
            if step % 2:
                writer.join()
            seconds = time.perf_counter() - start
            writer.join()
            if step >= 2:  # the first of each warms up
                (waits if step % 2 else delays).append(seconds)
    size = sum(v.nbytes for state in values.values() for v in state.values()) / 2**20
    delay, wait = statistics.median(delays), statistics.median(waits)
    print(
        f"DiT-{options.size}, {size:,.0f} MiB, {device}: the thread delays a step by {delay:.3f} s,"
        f" waiting by {wait:.3f} s, ratio {delay / wait:.2f} (medians of {options.rounds})"
    )


if __name__ == "__main__":
    main()
