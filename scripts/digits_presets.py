"""Train every preset on the digits with one network and budget, and write the table of FIDs.

Presets that their papers start from a diffusion or flow model start from ours; the others train
from scratch. Running again continues what is unfinished.

    python scripts/digits_presets.py [NAME ...] [--out-dir runs/presets] [--steps 1000]

The table goes to docs/results/digits.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ucgm.data import Digits
from ucgm.evaluation.benchmark import benchmark
from ucgm.nn import DiTConfig
from ucgm.objective import PRESETS, preset
from ucgm.runs.config import Config
from ucgm.runs.settings import EMAConfig, OptimizerConfig, TrainConfig
from ucgm.sampler import Grid, Sampler
from ucgm.training.loop import train
from ucgm.transport import EDM, Trig

STEPS = [1, 2, 4, 8, 16]
DIGITS_EDM = {"transport": EDM(sigma_data=0.75)}  # the digits' own standard deviation
UNGUIDED = {"field": "data"}
# The teachers here are not guided, so a ratio of 1 makes their velocity the target.
TAUGHT = {"field": "distillation", "enhancement_ratio": 1.0}


class Row(NamedTuple):
    """A preset, the row whose run it starts from, and settings beside the preset's own."""

    preset: str
    init: str | None = None
    settings: dict[str, Any] = {}


# The name of a run -> what it is.
ROWS: dict[str, Row] = {
    "ddpm": Row("ddpm"),
    "v_prediction": Row("v_prediction"),
    "edm": Row("edm", None, DIGITS_EDM),
    "edm2": Row("edm2", None, DIGITS_EDM),
    "flow_matching": Row("flow_matching"),
    "flow_matching_trig": Row("flow_matching", None, {"transport": Trig()}),
    "lightningdit": Row("lightningdit"),
    "ot_cfm": Row("ot_cfm"),
    "ucgm_multi": Row("ucgm_multi"),
    "ucgm_lambda": Row("ucgm_lambda", "flow_matching"),
    "ucgm_few": Row(
        "ucgm_few",
        "flow_matching",
        {"enhancement_ratio": 1.0, "enhancement_interval": (0.0, 1.0)},
    ),
    "ect": Row("ect", "edm", DIGITS_EDM),
    "scm": Row("scm", "flow_matching_trig", TAUGHT),
    "scm_data": Row("scm", "flow_matching_trig"),
    "scm_data_clamped": Row("scm", "flow_matching_trig", {"normalize": None, "clamp": 1.0}),
    "meanflow": Row("meanflow"),
    "imf": Row("imf"),
    "alpha_flow": Row("alpha_flow"),
    "terminal_velocity": Row("terminal_velocity"),
    "shortcut": Row("shortcut"),
    "rcgm": Row("rcgm", "flow_matching", UNGUIDED),
    "rcgm_order1": Row("rcgm", "flow_matching", {**UNGUIDED, "compose_steps": 1}),
    "facm": Row("facm", "flow_matching", TAUGHT),
    "twinflow": Row("twinflow", "flow_matching", UNGUIDED),
}


# Optimizers that a paper names for its tuning and that the shared one cannot stand in for.
OPTIMIZERS = {"ucgm_few": (OptimizerConfig("radam", 3e-4, (0.9, 0.999)), 0.1)}


def config_of(name: str, out_dir: Path, steps: int) -> Config:
    """The one network and budget, with what the preset's kind of model asks for."""
    row = ROWS[name]
    objective = preset(row.preset, **row.settings)
    tuned = row.init is not None
    if objective.two_time:
        # Jumps between the grid's times; FACM knows the data as its only destination.
        sampler = Sampler(steps=2, solver="jump", grid=Grid(gap=(0.0, 0.0)))
        if objective.destination is None:
            sampler = Sampler(
                steps=2, solver="jump", stochasticity=1.0, grid=Grid(gap=(0.001, 0.5))
            )
    elif objective.diffusion:
        sampler = Sampler(steps=8, grid=Grid(gap=(0.0, 0.0)))
    else:
        sampler = Sampler(steps=2, stochasticity=1.0, grid=Grid(gap=(0.001, 0.5)))
    shared = OptimizerConfig(
        lr=5e-4 if tuned else 2e-3, warmup_steps=0 if tuned else 100, schedule="cosine"
    )
    optimizer, clip = OPTIMIZERS.get(name, (shared, 1.0))
    return Config(
        model=DiTConfig(
            size="T/2",
            **objective.network_inputs,
        ),
        objective=objective,
        data=Digits(),
        optimizer=optimizer,
        ema=EMAConfig(decay=0.99 if tuned else 0.999),
        train=TrainConfig(
            steps=steps // 2 if tuned else steps,
            global_batch=128,
            grad_clip=clip,
            init=str(out_dir / row.init) if row.init else None,
            log_every=100,
            preview_every=10**6,
            checkpoint_every=250,
        ),
        sampler=sampler,
    )


def main() -> None:
    """Train and measure; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ROWS))
    parser.add_argument("--out-dir", type=Path, default=Path("runs/presets"))
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    assert {row.preset for row in ROWS.values()} | {"ucgm_paper"} == set(PRESETS)
    torch.set_num_threads(1)
    for name in arguments.names:
        run_dir = arguments.out_dir / name
        if list(run_dir.glob("benchmark/*/benchmark.json")):
            continue
        train(config_of(name, arguments.out_dir, arguments.steps), run_dir)
        benchmark(str(run_dir), STEPS, num_images=2000)
    table = write_table(arguments.out_dir, arguments.steps)
    print(table)


def write_table(out_dir: Path, steps: int) -> str:
    """docs/results/digits.md from the reports that there are."""
    lines = [
        "# Every preset on the digits",
        "",
        "FID in the feature space of the digits classifier, 2,000 samples to the training scans.",
        "One network (DiT T/2, 0.7M parameters), batch 128,",
        f"{steps} steps from scratch or {steps // 2} from the named run. Made by",
        f"`python scripts/digits_presets.py --steps {steps}`.",
        "It compares settings on a toy, not methods: no preset was tuned for these data, and all",
        "but ucgm_few (RAdam 3e-4, clip 0.1) share one optimizer. ucgm_few, scm and facm take the",
        "field from the model they start from. scm_data takes it from the data, as its paper also",
        "does with far larger batches: tangents of single samples, each divided by its length,",
        "drown the signal here; scm_data_clamped has a clamp in place of the division. rcgm",
        "divides the difference of one jump and two by a hundredth of the path, which fills its",
        "clamp; rcgm_order1 compares one jump with one (order N of the paper, 2 by default).",
        "",
        "| preset | starts from | "
        + " | ".join(f"{n} steps" for n in STEPS)
        + " | accuracy at 4 |",
        "|---|---|" + "---:|" * (len(STEPS) + 1),
    ]
    for name, row in ROWS.items():
        reports = list((out_dir / name).glob("benchmark/*/benchmark.json"))
        if not reports:
            continue
        rows = {r["steps"]: r["scores"] for r in json.loads(reports[0].read_text())["rows"]}
        cells = " | ".join(f"{rows[n]['fid']:.3f}" for n in STEPS)
        lines.append(f"| {name} | {row.init or 'scratch'} | {cells} | {rows[4]['accuracy']:.3f} |")
    text = "\n".join(lines) + "\n"
    path = Path(__file__).parents[1] / "docs/results/digits.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return text


if __name__ == "__main__":
    main()
