"""A training step of ucgm over a hand-written PyTorch loop.

    python scripts/bench/training.py [--size S/2] [--side 32] [--batch 64] [--pairs 4]

*Ours* is a step of ``ucgm train`` with all that belongs to it: latent shards, draw, terms,
backward, optimizer, averages, a log line after every step.  *Plain* is a loop as it is written by
hand around the same network class (plain_loop.py), in a process of its own, because a training of
ours keeps the memory that it frees.  For UCGM it makes every pass for every row, as published:

    flow_matching   the pass with gradient
    ucgm_multi      and the average without labels
    ucgm_few        and the teacher, and two passes at t -+ 0.005
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from loader import make_latents
from plain_loop import Elsewhere
from timing import HEADER, Pair, compare, line

from ucgm.data import Latents
from ucgm.data.loader import batches
from ucgm.nn import DiTConfig
from ucgm.objective import preset
from ucgm.runs.config import Config
from ucgm.runs.saving import Writer
from ucgm.runs.settings import EMAConfig, OptimizerConfig, TrainConfig
from ucgm.training.build import build_train_state
from ucgm.training.loop import _checkpoint, _report, _step

ADAMW = OptimizerConfig(lr=2e-4, betas=(0.9, 0.95))
RADAM = OptimizerConfig(name="radam", lr=1e-4, betas=(0.9, 0.999))
NEVER = 10**9
WARM = 5  # steps: the first of a training are slower, on both sides


def configuration(method: str, size: str, data: Path, batch: int, init: str | None) -> Config:
    """The same training as settings of ucgm."""
    few = method == "ucgm_few"
    return Config(
        model=DiTConfig(size=size, family="dit"),
        objective=preset(method),
        data=Latents(str(data)),
        optimizer=RADAM if few else ADAMW,
        ema=EMAConfig(target_decay=0.999 if method == "ucgm_multi" else None),
        train=TrainConfig(
            steps=NEVER, global_batch=batch, grad_clip=0.1 if few else None, init=init, log_every=1,
            preview_every=NEVER, checkpoint_every=NEVER,
        ),
    )  # fmt: skip


@contextlib.contextmanager
def stepper(config: Config, run_dir: Path):
    """A call that makes one step of ``ucgm train``, and the state it works on."""
    with contextlib.ExitStack() as held, Writer(run_dir) as writer:
        with contextlib.redirect_stdout(None):
            state = build_train_state(config, run_dir, held)
        plan, seed, device = state.plan, config.train.seed, state.accelerator.device
        stream = state.log.waiting(batches(state.dataset, plan, seed, 0, 0, device))

        def step():
            with contextlib.redirect_stdout(None):
                _step(state, stream)
                _report(state, writer, stop=False)

        yield step, state


def pairs(
    folder: Path,
    sizes=(("T/2", 8, 128), ("S/2", 16, 8)),
    methods=("flow_matching", "ucgm_few"),
) -> Iterator[Pair]:
    """A step of every method on latents (batch, 4, side, side), of sizes (size, side, batch)."""
    for number, (size, side, batch) in enumerate(sizes):
        shape, place = (4, side, side), folder / str(number)
        place.mkdir()
        make_latents(place / "latents", shape, shards=2, rows=512)
        first = configuration("flow_matching", size, place / "latents", batch, None)
        with stepper(first, place / "teacher") as (step, state):  # few-step training begins there
            step()
            _checkpoint(state)()
        for method in methods:
            init = str(place / "teacher") if method == "ucgm_few" else None
            config = configuration(method, size, place / "latents", batch, init)
            name = f"a step of {method}, DiT-{size}, {batch} x 4 x {side} x {side}"
            with (
                Elsewhere(method, size, shape, 1000, batch) as plain,
                stepper(config, place / method) as (step, _),
            ):
                for _ in range(WARM):
                    step()
                    plain.step()
                yield Pair(name, "a plain loop", step, plain.step)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="S/2")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--presets", nargs="+", default=["flow_matching", "ucgm_multi", "ucgm_few"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        print("\n".join(HEADER))
        sizes = [(options.size, options.side, options.batch)]
        for pair in pairs(Path(name), sizes, options.presets):
            print(line(pair, compare(pair, fewest=options.pairs, most=options.pairs)), flush=True)


if __name__ == "__main__":
    main()
