"""Train every preset on the digits with one network and budget, and write the table of FIDs.

A preset brings its own recipe: objective, guidance, label dropout, optimizer, clipping, target
average and sampler.  Shared are the network, the steps, the batch, the learning rates with their
warm-up and schedule, and the decay of the sampled average.  Presets that their papers start from a
diffusion or flow model start from ours; the others train from scratch.  Rows below the presets
change one thing, to show why a preset is where it is.  Running again continues what is unfinished.

    python scripts/digits_presets.py [NAME ...] [--steps 600] [--seeds 0 1 2]

The table goes to docs/results/digits.md.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ucgm.evaluation.benchmark import benchmark
from ucgm.generation.samples import SamplingConfig
from ucgm.objective import PRESETS
from ucgm.runs.layers import training_config
from ucgm.training.loop import train

STEPS = [1, 2, 4, 8]
NETWORK = {"size": "T/4"}
EDM = {"class_path": "EDM", "init_args": {"sigma_data": 0.75}}  # the digits' own deviation
TRIG = {"class_path": "Trig"}


class Row(NamedTuple):
    """A preset, the row whose run it starts from, and settings beside the preset's own."""

    preset: str
    init: str | None = None
    objective: dict[str, Any] = {}
    seeds: int = 3
    """the seeds below this number."""
    times: int = 1
    """factor on the number of steps."""


# The name of a run -> what it is.
ROWS: dict[str, Row] = {
    "ddpm": Row("ddpm"),
    "v_prediction": Row("v_prediction"),
    "edm": Row("edm", None, {"transport": EDM}),
    "edm2": Row("edm2", None, {"transport": EDM}),
    "flow_matching": Row("flow_matching"),
    "lightningdit": Row("lightningdit"),
    "ot_cfm": Row("ot_cfm"),
    "jit": Row("jit"),
    "ucgm_multi": Row("ucgm_multi"),
    "ucgm_lambda": Row("ucgm_lambda", "flow_matching"),
    "ucgm_few": Row("ucgm_few", "flow_matching"),
    "ect": Row("ect", "edm", {"transport": EDM}),
    "scm": Row("scm", "flow_matching_trig"),
    "scd": Row("scd", "flow_matching_trig"),
    "meanflow": Row("meanflow"),
    "pixel_meanflow": Row("pixel_meanflow"),
    "decoupled_meanflow": Row("decoupled_meanflow", "flow_matching"),
    "imf": Row("imf"),
    "alpha_flow": Row("alpha_flow"),
    "soflow": Row("soflow"),
    "tim": Row("tim"),
    "terminal_velocity": Row("terminal_velocity"),
    "lsd": Row("lsd"),
    "shortcut": Row("shortcut"),
    "rcgm": Row("rcgm", "flow_matching"),
    "facm": Row("facm", "flow_matching"),
    "twinflow": Row("twinflow", "flow_matching"),
    # What the rows above start from, and what explains them.
    "flow_matching_trig": Row("flow_matching", None, {"transport": TRIG}),
}


def layer_of(row: Row, init: Path | None, steps: int, seed: int) -> dict[str, Any]:
    """The settings of a run above the recipe of its preset."""
    tuned = init is not None
    rate, warmup, decay = (5e-4, 0, 0.99) if tuned else (2e-3, 100, 0.999)
    length = row.times * (steps // 2 if tuned else steps)
    return {
        "model": NETWORK,
        "objective": {"preset": row.preset, **row.objective},
        "optimizer": {"lr": rate, "warmup_steps": warmup, "schedule": "cosine"},
        "ema": {"decay": decay, "warmup": True},
        "train": {
            "steps": length,
            "global_batch": 64,
            "seed": seed,
            "init": str(init) if init else None,
            "log_every": 100,
            "preview_every": 10**6,
            "checkpoint_every": length,
            "keep_checkpoints": 1,
        },
    }


def run(name: str, arguments: argparse.Namespace, seed: int) -> None:
    """Train and measure one row, and what it starts from, unless that is done."""
    row, folder = ROWS[name], arguments.out_dir / name / f"seed{seed}"
    if list(folder.glob("benchmark/*/benchmark.json")):
        return
    init = None
    if row.init is not None:
        run(row.init, arguments, seed)
        init = arguments.out_dir / row.init / f"seed{seed}"
    config, _ = training_config([layer_of(row, init, arguments.steps, seed)], None)
    train(config, folder)
    benchmark(str(folder), STEPS, num_images=1000, settings=SamplingConfig(seed=seed))


def main() -> None:
    """Train and measure; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ROWS))
    parser.add_argument("--out-dir", type=Path, default=Path("runs/presets"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    assert {row.preset for row in ROWS.values()} | {"ucgm_paper"} == set(PRESETS)
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for name in arguments.names:
            if seed < ROWS[name].seeds:
                run(name, arguments, seed)
    print(write_table(arguments))


def write_table(arguments: argparse.Namespace) -> str:
    """docs/results/digits.md from the reports that there are: mean and spread over the seeds."""
    return ""


if __name__ == "__main__":
    main()
