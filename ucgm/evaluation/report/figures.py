"""Pictures of a benchmark: the curve, one grid of samples per step count, a strip.

Grids: one class per row, the same sample indices for every step count.  Strip: one row per step
count, one sample index per column, so that a column shows what more steps do to one sample.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ucgm.evaluation.report.tables import label, summarise
from ucgm.runtime.files import write_atomic


def save_curve(result: dict[str, Any], path: Path) -> Path:
    """The Frechet distances of one benchmark, with spread and noise floor, as PNG."""
    distances = ("fid", "fid_heldout", "sfid")
    names = [name for name in result["metrics"] if name.rpartition(".")[2] in distances]
    names = names or result["metrics"][:1]
    lines = [(label(name, result), series(result, name)) for name in names]
    title = f"{result['name']}, {result['protocol']['num_samples']:,} samples per point"
    return _draw(lines, floor_of(result, names[0]), axis_name(result, names[0]), title, path)


def save_curves(runs: Sequence[tuple[str, dict[str, Any]]], metric: str, path: Path) -> Path:
    """One metric of several benchmarks, as PNG."""
    lines = [(name, series(result, metric)) for name, result in runs]
    first = runs[0][1]
    title = f"{first['protocol']['num_samples']:,} samples per point"
    return _draw(lines, floor_of(first, metric), axis_name(first, metric), title, path)


def series(result: dict[str, Any], metric: str) -> list[tuple[int, float, float | None]]:
    """(steps, mean, deviation over repeats) of one metric."""
    entries = summarise(result)
    scores = [(entry["steps"], entry["scores"][metric]) for entry in entries]
    return [(steps, score["mean"], score["std"]) for steps, score in scores]


def floor_of(result: dict[str, Any], metric: str) -> float | None:
    """The score of held-out real data."""
    return result["real"]["scores"].get(metric) if result["real"] else None


def axis_name(result: dict[str, Any], metric: str) -> str:
    """What the vertical axis shows."""
    name = metric.rpartition(".")[0] or result["protocol"]["extractor"]["name"]
    return f"{label(metric, result)}, {name} features"


def _draw(
    lines: Sequence[tuple[str, list[tuple[int, float, float | None]]]],
    floor: float | None,
    axis: str,
    title: str,
    path: Path,
) -> Path:
    """Lines over the number of steps (log2), with a band of one deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in lines:
        steps, mean, spread = zip(*points, strict=True)
        (line,) = axes.plot(steps, mean, marker="o", label=name)
        if all(value is not None for value in spread):
            low = [m - s for m, s in zip(mean, spread, strict=True)]
            high = [m + s for m, s in zip(mean, spread, strict=True)]
            axes.fill_between(steps, low, high, alpha=0.2, color=line.get_color())
    if floor is not None:
        axes.axhline(floor, color="gray", linestyle=":", label=f"held-out real data {floor:.3g}")
    ticks = sorted({point[0] for _, points in lines for point in points})
    axes.set_xscale("log", base=2)
    if all(point[1] > 0 for _, points in lines for point in points) and (floor or 1) > 0:
        axes.set_yscale("log")
    axes.set_xticks(ticks, [str(count) for count in ticks])
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set_xlabel("sampling steps")
    axes.set_ylabel(axis)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return path
