"""Pictures of benchmarks: a metric against the number of steps, FDr of several encoders."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ucgm.evaluation.report.tables import encoders, label, summarise
from ucgm.runtime.files import write_atomic
from ucgm.runtime.terminal import printable

STRIP = 1.1  # inches


def save_curves(
    runs: Mapping[str, dict[str, Any]],
    metrics: Sequence[str],
    path: Path,
    strips: Mapping[str, Path] | None = None,
) -> Path:
    """Metrics of benchmarks over the number of steps (log2), as PNG.

    A band is one deviation over the repeats, a dotted line the score of held-out real images.

    Args:
        runs: content of ``benchmark.json`` by name; the first one names the axes.
        metrics: one where there are several runs.
        path: of the picture.
        strips: ``strip.png`` of runs by name; its samples go under the steps that made them.
    """
    from matplotlib.figure import Figure

    strips = strips or {}
    heights = [4.0] + [STRIP] * len(strips)
    figure = Figure(figsize=(6.4, sum(heights)), dpi=150, layout="constrained")
    shares = {"height_ratios": heights}
    places = figure.subplots(len(heights), sharex=True, squeeze=False, gridspec_kw=shares)
    axes, *below = places[:, 0]
    first, values, ticks = next(iter(runs.values())), [], set()
    for name, result in runs.items():
        entries = summarise(result)
        steps = [entry["steps"] for entry in entries]
        for metric in metrics:
            scores = [entry["scores"][metric] for entry in entries]
            mean = [score["mean"] for score in scores]
            line_name = name if len(runs) > 1 else label(metric, result)
            (line,) = axes.plot(steps, mean, marker="o", label=_text(line_name))
            if all(score["std"] is not None for score in scores):
                low, high = ([s["mean"] + sign * s["std"] for s in scores] for sign in (-1, 1))
                axes.fill_between(steps, low, high, alpha=0.2, color=line.get_color())
            values += mean
            ticks |= set(steps)
    floor = (first["real"] or {"scores": {}})["scores"].get(metrics[0])
    if floor is not None:
        axes.axhline(floor, color="gray", linestyle=":", label=f"held-out real data {floor:.3g}")
        values.append(floor)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), map(str, sorted(ticks)))
    axes.tick_params(axis="x", which="minor", bottom=False)
    plain_axis(axes, values)
    extractor = metrics[0].rpartition(".")[0] or first["protocol"]["extractor"]["name"]
    (below or [axes])[-1].set_xlabel("sampling steps")
    axes.set_ylabel(_text(f"{label(metrics[0], first)}, {extractor} features"))
    axes.set_title(f"{first['protocol']['num_samples']:,} samples per point")
    axes.grid(alpha=0.3)
    axes.legend()
    for name, place in zip(strips, below, strict=True):
        _draw_strip(place, name, runs[name], strips[name])
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return path


def save_encoders(result: dict[str, Any], path: Path) -> None:
    """FDr of each encoder, a group of bars with one per number of steps, as PNG.

    Args:
        result: content of ``benchmark.json``, of several encoders.
        path: of the picture.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    entries, shown = summarise(result), encoders(result)
    height = 1.6 + 0.2 * (len(entries) + 1) * len(shown)
    figure = Figure(figsize=(6.4, height), dpi=150, layout="constrained")
    axes, thick, handles = figure.subplots(), 0.86 / len(entries), []
    values = [[entry["scores"][m]["mean"] for m in shown.values()] for entry in entries]
    # On a logarithmic axis, which has no zero, bars begin at the line of real images.
    start = float(plain_axis(axes, [1.0, *(v for row in values for v in row)], "x"))
    on_white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for i, (entry, row) in enumerate(zip(entries, values, strict=True)):
        places = [n + thick * (i + 0.5 - len(entries) / 2) for n in range(len(row))]
        color = colormaps["viridis"](0.9 * (1 - (i + 0.5) / len(entries)))
        lengths, steps = [value - start for value in row], str(entry["steps"])
        handles.append(axes.barh(places, lengths, thick, start, color=color, label=steps))
        texts = [f"{value:,.{2 if abs(value) < 100 else 0}f}" for value in row]
        axes.bar_label(handles[-1], texts, padding=3, fontsize="small", bbox=on_white, zorder=3)
    handles.append(axes.axvline(1.0, color="tab:red", linestyle="--", label="real images"))
    axes.use_sticky_edges = not start
    axes.margins(x=0.15, y=0.02)
    axes.set_yticks(range(len(shown)), [_text(name) for name in shown])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("FDr (real images: 1)")
    axes.set_title(f"{result['protocol']['num_samples']:,} samples per bar")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(8, len(handles)),
        title="sampling steps",
        handlelength=1.5,
        columnspacing=1.2,
    )
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw_strip(axes: Any, name: str, result: dict[str, Any], strip: Path) -> None:
    """Up to nine samples of each number of steps under its tick, the same ones at each."""
    import numpy as np
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage
    from PIL import Image

    steps, columns = [entry["steps"] for entry in summarise(result)], len(result["strip"])
    side = min(3, math.isqrt(columns))
    with Image.open(strip) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width = (pixels.shape[0] - 1) // len(steps), (pixels.shape[1] - 1) // columns
    rows = pixels[: height * len(steps)].reshape(-1, height, *pixels.shape[1:])
    for row, count in zip(rows, steps, strict=True):
        wide = row[:, : side**2 * width].reshape(height, side, side * width, 3)
        block = wide.transpose(1, 0, 2, 3).reshape(side * height, side * width, 3)
        zoom = 0.8 * 72 * STRIP / len(block)
        image = OffsetImage(block, zoom=zoom, interpolation="nearest")
        axes.add_artist(AnnotationBbox(image, (count, 0.5), frameon=False))
    axes.set_title(f"{_text(name)}, the same noise at every step count", fontsize="medium")
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _text(name: str) -> str:
    """A name that is neither a formula nor a character that no font can draw."""
    return printable(name).replace("$", r"\$")


def plain_axis(axes: Any, values: Iterable[float], name: str = "y") -> bool:
    """An axis whose ticks read 0.3, in place of 3x10^-1; whether it is logarithmic: over a decade.

    Args:
        axes: of the picture.
        values: that it shows.
        name: y or x.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    found = [value for value in values if abs(value) < float("inf")]
    axis = axes.yaxis if name == "y" else axes.xaxis
    wide = bool(found) and min(found) > 0 and max(found) > 10 * min(found)
    if wide:
        axes.set(**{f"{name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter("{x:g}")
    return wide
