"""What ``ucgm tune-sampler`` leaves behind: the settings, all measurements, and their picture."""

import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from ucgm.evaluation.tuning.search import Candidate, Trial, passes
from ucgm.runs.config import to_dict
from ucgm.runtime.files import write_atomic


def described(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON."""
    return {
        "family": candidate.family,
        "passes": passes(candidate.sampler, candidate.guidance),
        "sampler": to_dict(candidate.sampler),
        "guidance": to_dict(candidate.guidance),
    }


def trial_row(trial: Trial) -> dict[str, Any]:
    """A measurement as JSON."""
    return {
        "round": trial.round,
        "rung": trial.rung,
        "samples": trial.samples,
        "score": trial.score,
        **described(trial.candidate),
    }


class RungLog:
    """One line per rung: how many, the best and the default."""

    def __init__(self, default: Candidate) -> None:
        self.default, self.place = default, (0, 0)
        self.best, self.count = float("inf"), 0

    def __call__(self, trial: Trial) -> None:
        """Print the default of a new rung, and whatever is better than all before it."""
        if (trial.round, trial.rung) != self.place:
            self.place, self.best, self.count = (trial.round, trial.rung), float("inf"), 0
        self.count += 1
        if trial.candidate is self.default:
            print(f"round {trial.round} rung {trial.rung}, {trial.samples:,} samples: "
                  f"default {trial.score:.4f}", flush=True)  # fmt: skip
        elif trial.score < self.best:
            self.best = trial.score
            print(f"  {self.count:3d} {trial.candidate.family:12} {trial.score:.4f}", flush=True)


def write_results(folder: Path, result: dict[str, Any], chosen: Candidate) -> None:
    """``trace.json``, ``trace.png`` and ``sampler.yaml``."""
    text = json.dumps(result, indent=1) + "\n"
    write_atomic(folder / "trace.json", text)
    save_trace(result, folder / "trace.png")
    figures = [
        f"# {label}: {metric} {statistics.mean(v):.4f} ({', '.join(f'{x:.4f}' for x in v)})"
        for label, scores in result["held_out"].items()
        for metric, v in scores.items()
    ]
    head = [
        f"# The {result['kept']} sampler at {result['nfe']} network passes per image; "
        f"on held-out seed {result['held_out_seed']}:",
        *figures,
    ]
    sections = {"sampler": to_dict(chosen.sampler), "guidance": to_dict(chosen.guidance)}
    body = "\n".join(head) + "\n" + yaml.safe_dump(sections, sort_keys=False)
    write_atomic(folder / "sampler.yaml", body)
    print("\n".join([*head, f"settings: {folder / 'sampler.yaml'}"]))


def save_trace(result: dict[str, Any], path: Path) -> Path:
    """Scores of all candidates rung by rung, and the figures on the held-out seed, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    stages = sorted({(row["round"], row["rung"]) for row in result["trials"]})
    families = sorted({row["family"] for row in result["trials"]} - {"default"})
    for number, family in enumerate(families):
        rows = [row for row in result["trials"] if row["family"] == family]
        shift = 0.6 * (number / max(1, len(families) - 1) - 0.5)
        left.scatter(
            [stages.index((row["round"], row["rung"])) + shift for row in rows],
            [row["score"] for row in rows],
            s=10,
            color=f"C{number % 10}",
            label=family,
        )
    defaults = [row for row in result["trials"] if row["family"] == "default"]
    for row in defaults:
        x = stages.index((row["round"], row["rung"]))
        left.hlines(row["score"], x - 0.4, x + 0.4, color="black", linewidth=1.5)
    ticks = [f"round {r}\n{row['samples']:,}" for (r, _), row in zip(stages, defaults, strict=True)]
    left.set_xticks(range(len(stages)), ticks)
    left.set_xlabel("samples per candidate; black: the run's own sampler")
    left.set_ylabel(result["metric"])
    left.set_yscale("log" if result["metric"] == "fid" else "symlog")
    left.legend(fontsize=7, ncols=2)
    for x, (label, scores) in enumerate(result["held_out"].items()):
        values = scores[result["metric"]]
        right.scatter([x] * len(values), values, color="black" if label == "default" else "C3")
        right.text(x, statistics.mean(values), f"   {statistics.mean(values):.3f}", va="center")
    right.set_xticks([0, 1], list(result["held_out"]))
    right.set_xlim(-0.5, 2.0)
    right.set_title("held-out seed", fontsize=10)
    left.set_title(f"{result['nfe']} network passes per image", fontsize=10)
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return path
