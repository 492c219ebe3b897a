"""Train every preset on the digits with one network and budget, and write the table of FIDs.

A preset brings its own recipe: objective, guidance, label dropout, optimizer, clipping, target
average and sampler.  Shared are the network, the steps, the batch, the learning rates with their
warm-up and schedule, and the decay of the sampled average.  Presets that their papers start from a
diffusion or flow model start from ours; the others train from scratch.  Rows below the presets
change one thing, to show why a preset is where it is.  Running again continues what is unfinished.

    python scripts/digits_presets.py [NAME ...] [--steps 600] [--seeds 0 1 2]

The table in docs/results/digits.md is made anew; what it shows is said there.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tables import cell
from trained import train_section, train_to_the_end

from ucgm.evaluation.benchmark import benchmark
from ucgm.generation.samples import SamplingConfig
from ucgm.objective import PRESETS
from ucgm.runs.fitted import DEFAULTS
from ucgm.runs.layers import training_config

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
    optimizer: dict[str, Any] = {}
    """settings of the optimizer beside the recipe's."""
    scale: float | None = None
    """guidance scale of sampling, where it is not the recipe's."""


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
    "ddpm_long": Row("ddpm", None, {}, 1, times=4),
    "v_prediction_long": Row("v_prediction", None, {}, 1, times=4),
    "edm_long": Row("edm", None, {"transport": EDM}, 1, times=4),
    "shortcut_long": Row("shortcut", None, {}, 1, times=4),
    "lsd_adamw": Row("lsd", None, {}, 1, optimizer={"name": "adamw"}),
    "imf_scale_1": Row("imf", None, {}, 1, scale=1.0),
    "imf_long": Row("imf", None, {}, 1, times=4),
    "flow_matching_unlabelled": Row("flow_matching", None, {"label_dropout": 1.0}, 1),
    "ot_cfm_unlabelled": Row("ot_cfm", None, {"label_dropout": 1.0}, 1),
}


def layer_of(row: Row, init: Path | None, steps: int, seed: int) -> dict[str, Any]:
    """The settings of a run above the recipe of its preset."""
    tuned = init is not None
    rate, warmup, decay = (5e-4, 0, 0.99) if tuned else (2e-3, 100, 0.999)
    length = row.times * (steps // 2 if tuned else steps)
    return {
        "model": NETWORK,
        "objective": {"preset": row.preset, **row.objective},
        "optimizer": {
            "lr": rate,
            "warmup_steps": warmup,
            "schedule": "cosine",
            **row.optimizer,
        },
        "ema": {"decay": decay, "warmup": True},
        "train": train_section(length, 64, seed, init),
    }


def run(name: str, arguments: argparse.Namespace, seed: int) -> None:
    """Train and measure one row, and what it starts from, unless that is done."""
    row, folder, init = ROWS[name], arguments.out_dir / name / f"seed{seed}", None
    if row.init is not None:
        run(row.init, arguments, seed)
        init = arguments.out_dir / row.init / f"seed{seed}"
    config, _ = training_config([layer_of(row, init, arguments.steps, seed)], None)
    train_to_the_end(config, folder)
    wanted = {*STEPS, config.sampler.steps}
    if wanted - scores(folder).keys():  # what was sampled before is not sampled again
        settings = SamplingConfig(seed=seed, guidance_scale=row.scale)
        benchmark(str(folder), sorted(wanted), num_images=1000, settings=settings)


def scores(folder: Path) -> dict[int, dict[str, float]]:
    """What the reports of a run say, by the number of steps."""
    reports = (json.loads(p.read_text()) for p in folder.glob("benchmark/*/benchmark.json"))
    return {row["steps"]: row["scores"] for report in reports for row in report["rows"]}


def main() -> None:
    """Train and measure; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ROWS))
    parser.add_argument("--out-dir", type=Path, default=Path("runs/presets"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    assert {row.preset for row in ROWS.values()} | {"ucgm_paper", *DEFAULTS} == set(PRESETS)
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for name in arguments.names:
            if seed < ROWS[name].seeds:
                run(name, arguments, seed)
    print(write_table(arguments))


def write_table(arguments: argparse.Namespace) -> str:
    """The table in docs/results/digits.md, made anew from the reports that there are.

    Means and standard deviations over the seeds.
    """
    lines = [
        "| preset | starts from | 1 step | 2 | 4 | 8 | own | FID at own | accuracy | seeds |",
        "|---|---|" + "---:|" * 8,
    ]
    for name, row in ROWS.items():
        tables = map(scores, sorted((arguments.out_dir / name).glob("seed*")))
        found = [table for table in tables if table]
        if not found:
            continue
        config, _ = training_config([layer_of(row, None, arguments.steps, 0)], None)
        own = config.sampler.steps
        cells = [cell([t[n]["fid"] for t in found if n in t]) for n in (*STEPS, own)]
        right = cell([t[own]["accuracy"] for t in found if own in t])
        start = row.init or "scratch"
        shown = " | ".join([name, start, *cells[:-1], str(own), cells[-1], right, str(len(found))])
        lines.append(f"| {shown} |")
    page = Path(__file__).parents[1] / "docs/results/digits.md"
    before, _, rest = page.read_text().partition("\n| preset")
    after = rest.partition("\n\n")[2]
    page.write_text("\n".join([before, *lines, "", after]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
