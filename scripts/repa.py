"""Steps to a fixed FID with and without representation alignment, on the digits.

    python scripts/repa.py [--seeds 0 1 2] [--steps 3000] [--out-dir runs/repa]

The teacher is an attention network of train_classifier.py, which has nothing in common with the
classifier whose features make the FID.  Networks of one seed differ in the term alone; each keeps
a checkpoint every tenth of the run, from whose average 2,000 samples are drawn in 8 steps without
guidance.  The fixed FID is that of the network without alignment at its end; between checkpoints
it is reached on a straight line in log FID.  What is done is not done again.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

from trained import train_row, train_section

from ucgm.evaluation.benchmark import benchmark
from ucgm.generation.samples import SamplingConfig

TEACHER = "scripts.train_classifier:build"
ROWS = {
    "none": {},
    "repa": {"projector": "mlp", "hidden": 256},
    "irepa": {"projector": "conv", "gamma": 0.6},
}
WEIGHT, NETWORK = 0.5, {"size": "T/2"}


def teacher(folder):
    """Weights of the classifier that is followed, trained where they are missing."""
    out = folder / "teacher.safetensors"
    if not out.exists():
        words = ["digits", "digits", "--side", "8", "--out", str(out), "--network", "attention"]
        script = Path(__file__).with_name("train_classifier.py")
        subprocess.run([sys.executable, str(script), *words, "--epochs", "60"], check=True)
    return str(out.resolve())


def curve(folder, name, seed, steps, batch, weights):
    """(step, FID) of the checkpoints of one network, trained where it is not."""
    run, period = folder / name / f"seed{seed}", steps // 10
    section = train_section(steps, batch, seed, None) | {"checkpoint_every": period}
    section |= {"milestone_every": period}
    objective = {"preset": "multi_step", "alignment": 0.0 if name == "none" else WEIGHT}
    settings = {"objective": objective, "model": NETWORK}
    if name != "none":
        settings["alignment"] = ROWS[name] | {"extractor": TEACHER, "weights": weights}
    train_row(settings, {"train": section}, run)
    points = []
    for step in range(period, steps + 1, period):
        out = run / f"report_{step}"
        if not (out / "benchmark.json").exists():
            settings = SamplingConfig(seed=seed)
            benchmark(
                str(run),
                [8],
                2000,
                settings=settings,
                out_dir=out,
                keep_features=False,
                checkpoint=step,
            )
        rows = json.loads((out / "benchmark.json").read_text())["rows"]
        points.append((step, rows[0]["scores"]["fid"]))
    return points


def reached(points, fid):
    """Step at which the curve first has ``fid``; inf where it never does."""
    for (before, high), (after, low) in zip(points, points[1:], strict=False):
        if low <= fid:
            if high <= fid:
                return before
            share = (math.log(high) - math.log(fid)) / (math.log(high) - math.log(low))
            return before + share * (after - before)
    return math.inf


def main():
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out-dir", type=Path, default=Path("runs/repa"))
    options = parser.parse_args()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    weights = teacher(options.out_dir)
    print("| seed | fixed FID | " + " | ".join(f"{n}: steps, of none" for n in options.rows) + " |")
    print("|---:" * (2 + len(options.rows)) + "|")
    for seed in options.seeds:
        sizes = (options.steps, options.batch, weights)
        curves = {n: curve(options.out_dir, n, seed, *sizes) for n in {"none": 0, **ROWS}}
        fid = curves["none"][-1][1]
        base = reached(curves["none"], fid)
        found = {n: reached(curves[n], fid) for n in options.rows}
        cells = [f"{step:,.0f}, {step / base:.2f}" for step in found.values()]
        print(f"| {seed} | {fid:.3f} | {' | '.join(cells)} |", flush=True)
        for name, points in curves.items():
            print(f"  {name}: " + ", ".join(f"{s}: {v:.2f}" for s, v in points), flush=True)


if __name__ == "__main__":
    main()
