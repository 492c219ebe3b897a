"""Pictures of a benchmark: the curve, one grid of samples per step count, a strip.

Grids: one class per row, the same sample indices for every step count.  Strip: one row per step
count, one sample index per column, so that a column shows what more steps do to one sample.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ucgm.data.files import write_atomic
from ucgm.data.images import grid
from ucgm.report.tables import COLUMNS, summarise
from ucgm.samples import SampleSet


def grid_indices(samples: SampleSet, rows: int = 10, columns: int = 10) -> Tensor:
    """Sample indices (rows x columns) of a contact sheet: one class per row where labels turn."""
    classes = len(samples.classes or range(samples.data.num_classes))
    if classes < 2 or samples.labels != "balanced":
        return torch.arange(rows * columns).view(rows, columns)
    rows = min(rows, classes)
    lead = torch.arange(rows) * classes // rows
    return lead[:, None] + classes * torch.arange(columns)[None, :]


def save_image(image: Image.Image, path: Path) -> Path:
    """PNG, whole or not at all."""
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG"))
    return path


def save_grid(samples: SampleSet, path: Path) -> Tensor:
    """The grid of ``samples`` as PNG; returns its first column (rows, C, H, W) for the strip."""
    indices = grid_indices(samples)
    images = torch.cat([samples.images(part) for part in indices.flatten().split(25)])
    save_image(grid(images, indices.shape[1]), path)
    return images[:: indices.shape[1]]


def save_strip(columns: list[Tensor], path: Path) -> Path:
    """Rows of equal indices at several step counts, each (N, C, H, W) uint8, as PNG."""
    return save_image(grid(torch.cat(columns), len(columns[0])), path)


def save_curve(result: dict[str, Any], path: Path) -> Path:
    """FID against the number of steps (log2), with the spread over repeats and the noise floor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary = summarise(result)
    names = [name for name in ("fid", "fid_heldout", "sfid") if name in result["metrics"]]
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [entry["steps"] for entry in summary]
    for name in names or result["metrics"][:1]:
        mean = [entry["scores"][name]["mean"] for entry in summary]
        spread = [entry["scores"][name]["std"] for entry in summary]
        (line,) = axes.plot(steps, mean, marker="o", label=COLUMNS[name][0])
        if all(value is not None for value in spread):
            low = [m - s for m, s in zip(mean, spread, strict=True)]
            high = [m + s for m, s in zip(mean, spread, strict=True)]
            axes.fill_between(steps, low, high, alpha=0.2, color=line.get_color())
    real = result["real"]
    if real and "fid" in real["scores"]:
        floor = real["scores"]["fid"]
        axes.axhline(floor, color="gray", linestyle=":", label=f"noise floor {floor:.3g}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log" if min(axes.get_ylim()) > 0 or _positive(summary, names) else "linear")
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.minorticks_off()
    axes.set_xlabel("sampling steps")
    axes.set_ylabel(f"{result['protocol']['extractor']['name']} feature distance")
    axes.set_title(f"{result['name']}, {result['protocol']['num_samples']:,} samples per point")
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
    return path


def _positive(summary: list[dict[str, Any]], names: list[str]) -> bool:
    """Whether a logarithmic axis can show all means."""
    return all(entry["scores"][name]["mean"] > 0 for entry in summary for name in names)
