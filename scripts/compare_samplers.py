"""Samplers at equal cost on the digits model: ours, and diffusers' own solvers.

    ucgm train --config configs/digits.yaml --run-dir runs/digits
    python scripts/compare_samplers.py runs/digits            # about ten minutes of one core

Every sampler starts from the same noise.  Two figures for each number of network calls:

    FID     digits features, against the training images
    error   RMS distance in pixels of [-1, 1] to what the same noise becomes in the limit of many
            steps (Heun, 200 steps): the error of the solver alone

All but two rows evaluate at t_i = 1 - i / n (start gap 0.001), the grid of diffusers' flow matching
pipelines: the first has the published grid, FlowMatchHeun takes no other than its own.  Diffusers'
multistep solvers round timesteps to integers; they are given the exact times here.  Heun makes
2 n - 1 calls, so at an even number it makes one call less.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from matplotlib.figure import Figure

from ucgm import Grid, Sampler, load_run
from ucgm.evaluation.extractors import open_extractor
from ucgm.evaluation.metrics import frechet_distance, moments_of
from ucgm.evaluation.references import reference_of
from ucgm.generation.command import samples_of_run
from ucgm.generation.samples import SamplingConfig
from ucgm.runtime.randomness import RowRandom
from ucgm.sampler import NAMED

CALLS = (4, 6, 8, 12, 16, 24)
COMMON = Grid(gap=(0.001, 0.0))
PUBLISHED = Grid(warp=(1.17, 0.8, 1.1))


def ours(settings, grid=COMMON):
    """A native sampler: (network, z, y, calls) -> samples."""

    def run(network, z, y, calls):
        steps = (calls + 1) // 2 if settings.get("solver") == "heun" else calls
        return Sampler(steps=steps, **{**settings, "grid": grid})(network, z, y)

    return run


def theirs(make):
    """The loop of a pipeline around a scheduler of diffusers."""

    def run(network, z, y, calls):
        scheduler = make()
        heun = isinstance(scheduler, FlowMatchHeunDiscreteScheduler)
        steps = (calls + 1) // 2 if heun else calls
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            times = COMMON.times(steps)[:-1].tolist()
            scheduler.set_timesteps(sigmas=times)
        else:
            scheduler.set_timesteps(steps)
        flows = hasattr(scheduler.config, "use_flow_sigmas")
        times = scheduler.sigmas[:-1] if flows else scheduler.timesteps / 1000
        x = z
        for t, timestep in zip(times, scheduler.timesteps, strict=True):
            prediction = network(x, t.float().expand(len(x)), y)
            x = scheduler.step(prediction, timestep, x, return_dict=False)[0]
        return x

    return run


def flow(kind, **settings):
    """A scheduler of the variance-preserving family on the linear path."""
    return lambda: kind(use_flow_sigmas=True, prediction_type="flow_prediction", **settings)


ROWS = {
    "UCGM-S, published grid": ours({"extrapolation": 0.5}, PUBLISHED),
    "UCGM-S": ours({"extrapolation": 0.5}),
    "UCGM-S, state-preserving": ours(NAMED["ucgm_state"]),
    "Adams-Bashforth 3": ours(NAMED["ab3"]),
    "DPM++ 2M": ours(NAMED["dpmpp_2m"]),
    "DPM++ 3M": ours(NAMED["dpmpp_3m"]),
    "UniPC": ours(NAMED["unipc"]),
    "Heun": ours(NAMED["heun"]),
    "Euler (DDIM)": ours({}),
    "diffusers FlowMatchEuler": theirs(FlowMatchEulerDiscreteScheduler),
    "diffusers FlowMatchHeun": theirs(FlowMatchHeunDiscreteScheduler),
    "diffusers DPMSolverMultistep 2": theirs(flow(DPMSolverMultistepScheduler)),
    "diffusers DPMSolverMultistep 3": theirs(flow(DPMSolverMultistepScheduler, solver_order=3)),
    "diffusers UniPCMultistep": theirs(flow(UniPCMultistepScheduler)),
}


class CandidateScorer:
    """The run, the noise and the yardsticks."""

    def __init__(self, run_dir, count, seed):
        run = load_run(run_dir)
        self.samples = samples_of_run(run, SamplingConfig(seed=seed))
        self.network, data = run.network, self.samples.data
        self.extractor = open_extractor(data.extractor)
        self.reference = reference_of(data, self.extractor).gaussian
        indices = torch.arange(count)
        self.z = RowRandom.for_samples(seed, indices).normal(*data.shape)
        self.y = self.samples.labels_at(indices)
        self.limit = None

    def draw(self, run, calls):
        """Samples of a row."""
        parts = zip(self.z.split(500), self.y.split(500), strict=True)
        return torch.cat([run(self.network, z, y, calls) for z, y in parts])

    def measure(self, run, calls):
        """FID and error of a row."""
        x = self.draw(run, calls)
        images = self.samples.data.decode(x)
        fid = frechet_distance(moments_of(self.extractor(images)["features"]), self.reference)
        return fid, float((x - self.limit).square().mean().sqrt())


def table(results, index, digits):
    """One figure for all rows and numbers of calls, as Markdown."""
    lines = [
        "| sampler | " + " | ".join(f"{n}" for n in CALLS) + " |",
        "|---|" + "--:|" * len(CALLS),
    ]
    for name, values in results.items():
        best = [min(results[row][n][index] for row in results) for n in CALLS]
        cells = [
            f"**{values[n][index]:.{digits}f}**"
            if values[n][index] == b
            else f"{values[n][index]:.{digits}f}"
            for n, b in zip(CALLS, best, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(results, floor, path):
    """Both figures against the number of calls; diffusers' solvers are dashed."""
    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    labels = ("FID, digits features", "RMS error of the solver")
    for index, axes in enumerate(figure.subplots(1, 2)):
        native = 0
        for name, values in results.items():
            theirs = name.startswith("diffusers")
            native += not theirs
            number = (len(results) - list(results).index(name)) if theirs else native
            axes.plot(
                CALLS,
                [values[n][index] for n in CALLS],
                "--" if theirs else "-",
                marker="x" if theirs else "o",
                markersize=4,
                color=f"C{number % 10}",
                label=name if index == 0 else None,
                linewidth=1.2,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(CALLS, [str(n) for n in CALLS])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("network calls")
        axes.set_ylabel(labels[index])
        axes.grid(alpha=0.3, which="both")
        if index == 0:
            axes.axhline(floor, color="gray", linestyle=":", label=f"many steps, {floor:.3f}")
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(path)


def main():
    """Measure all rows; write the table, the picture and the numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out-dir", type=Path, default=Path("docs/results"))
    settings = parser.parse_args()
    torch.set_grad_enabled(False)
    bench = CandidateScorer(settings.run_dir, settings.count, settings.seed)
    bench.limit = bench.draw(ours(NAMED["heun"]), 399)
    floor = bench.measure(lambda network, z, y, calls: ours(NAMED["heun"])(network, z, y, 199), 199)
    results = {}
    for name, run in ROWS.items():
        results[name] = {n: bench.measure(run, n) for n in CALLS}
        print(
            f"{name:32}",
            "  ".join(f"{a:.3f}/{b:.3f}" for a, b in results[name].values()),
            flush=True,
        )
    settings.out_dir.mkdir(parents=True, exist_ok=True)
    picture(results, floor[0], settings.out_dir / "samplers.png")
    rows = {name: list(values.values()) for name, values in results.items()}
    numbers = {"calls": CALLS, "count": settings.count, "seed": settings.seed}
    numbers |= {"limit": floor, "rows": rows}
    (settings.out_dir / "samplers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    title = __doc__.split("\n", 1)[0].rstrip(".")
    page = [
        f"# {title}",
        f"`python scripts/compare_samplers.py RUN` with the run of `configs/digits.yaml`, "
        f"{settings.count:,} samples, seed {settings.seed}. The limit of many steps has FID "
        f"{floor[0]:.3f} (Heun with 100 steps is {floor[1]:.4f} from Heun with 200).",
        "## FID against the number of network calls",
        table(results, 0, 3),
        "## RMS error of the solver against the number of network calls",
        table(results, 1, 3),
        "![FID and error](samplers.png)",
        NOTES,
    ]
    (settings.out_dir / "samplers.md").write_text("\n\n".join(page) + "\n")


NOTES = """Every sampler starts from the same noise. The error is the RMS distance in pixels of
[-1, 1] to what that noise becomes in the limit. All rows evaluate at t = 1 - i / n, except the
first (published grid) and FlowMatchHeun, which takes no times but its own; diffusers' multistep
solvers, which round timesteps to integers, are given the exact times. Heun makes 2 n - 1 calls, so
at an even number it makes one call less. A small error and a small FID are
two things: FID also rewards samples that are more spread out than the model's own."""


if __name__ == "__main__":
    main()
