"""What ``ucgm tune-sampler`` leaves behind: the settings, all measurements, and their picture."""

import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from ucgm.evaluation.report.figures import plain_axis
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
    facts = trial._asdict()
    return facts | described(facts.pop("candidate"))


class RungLog:
    """Prints the default of each rung, which comes first, and whatever is better than before."""

    def __init__(self) -> None:
        self.best, self.count = float("inf"), 0

    def __call__(self, trial: Trial) -> None:
        """Note a measurement."""
        self.count += 1
        if trial.candidate.family == "default":
            self.best, self.count = float("inf"), 1
            print(f"round {trial.round} rung {trial.rung}, {trial.samples:,} samples: "
                  f"default {trial.score:.4f}", flush=True)  # fmt: skip
        elif trial.score < self.best:
            self.best = trial.score
            print(f"  {self.count:3d} {trial.candidate.family:12} {trial.score:.4f}", flush=True)


def write_results(folder: Path, result: dict[str, Any], chosen: Candidate) -> None:
    """``trace.json``, ``trace.png`` and ``sampler.yaml``."""
    write_atomic(folder / "trace.json", json.dumps(result, indent=1) + "\n")
    save_trace(result, folder / "trace.png")
    head = [
        f"# The {result['kept']} sampler at {result['nfe']} network passes per image; "
        f"on held-out seed {result['held_out_seed']}:"
    ]
    for label, scores in result["held_out"].items():
        for metric, values in scores.items():
            each = ", ".join(f"{value:.4f}" for value in values)
            head.append(f"# {label}: {metric} {statistics.mean(values):.4f} ({each})")
    sections = {"sampler": to_dict(chosen.sampler), "guidance": to_dict(chosen.guidance)}
    body = yaml.safe_dump(sections, sort_keys=False)
    write_atomic(folder / "sampler.yaml", "\n".join([*head, body]))
    print(*head, f"settings: {folder / 'sampler.yaml'}", sep="\n")


def save_trace(result: dict[str, Any], path: Path) -> None:
    """Scores of all candidates rung by rung, and the figures on the held-out seed, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    trials, metric = result["trials"], result["metric"]
    stages = {(row["round"], row["rung"]): row["samples"] for row in trials}
    families = sorted({row["family"] for row in trials} - {"default"})
    for number, family in enumerate(["default", *families]):
        shift = 0.6 * ((number - 1) / max(1, len(families) - 1) - 0.5)
        rows = [row for row in trials if row["family"] == family]
        places = [list(stages).index((row["round"], row["rung"])) for row in rows]
        scores = [row["score"] for row in rows]
        if family == "default":
            left.hlines(scores, [x - 0.4 for x in places], [x + 0.4 for x in places], "black")
        else:
            left.scatter([x + shift for x in places], scores, s=10, label=family)
    ticks = [f"round {turn}\n{count:,}" for (turn, _), count in stages.items()]
    left.set_xticks(range(len(stages)), ticks)
    left.set_xlabel("samples per candidate; black: the run's own sampler")
    left.set_ylabel(metric)
    left.legend(fontsize=7, ncols=2)
    for x, (label, scores) in enumerate(result["held_out"].items()):
        values, mean = scores[metric], statistics.mean(scores[metric])
        right.scatter([x] * len(values), values, color="black" if label == "default" else "C3")
        right.text(x, mean, f"   {mean:.3f}", va="center")
    right.set_xticks([0, 1], list(result["held_out"]))
    right.set_xlim(-0.5, 2.0)
    right.set_title("held-out seed", fontsize=10)
    left.set_title(f"{result['nfe']} network passes per image", fontsize=10)
    plain_axis(left, [row["score"] for row in trials])
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
