"""Curves of trainings against each other: ``ucgm plot RUN RUN ... --out curves.png``.

Every training writes one line of numbers per period to ``metrics.jsonl``; a panel shows one of them
over the step for all runs.  The loss over the times is drawn over t, as its mean over the last
tenth of the lines.  A run that is still going can be drawn at any time.
"""

import json
import math
from pathlib import Path
from typing import Any

from ucgm.runtime.files import sole_writer, write_atomic
from ucgm.runtime.reading import reading

METRICS_FILE = "metrics.jsonl"
# Key in metrics.jsonl -> (title of the panel, logarithmic axis where it spans a decade).
PANELS = {
    "loss": ("loss", True),
    "loss_by_time": ("loss over t, last tenth of the log", True),
    "grad_norm": ("gradient norm", True),
    "lr": ("learning rate", False),
    "images_per_second": ("images per second", False),
    "of_peak": ("share of the measured peak", False),
}
FROM_ZERO = ("images_per_second", "of_peak", "data_wait")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that is being written is left out.

    Raises:
        ValueError: no run folder, or no line yet.
    """
    path = run_dir / METRICS_FILE
    try:
        with reading(path):
            lines = path.read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{run_dir} has no {METRICS_FILE}: is it a run folder?") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not _is_row(row):
                raise ValueError("no row of numbers")
            rows.append(row)
        except (ValueError, RecursionError):
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is damaged: delete that line") from None
    if not rows:
        raise ValueError(f"{path} has no line yet: the first comes after train.log_every steps")
    return rows


def _is_row(row: Any) -> bool:
    """Whether it is an object of numbers, and rows of numbers, with the step."""
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    flat = (v for value in row.values() for v in (value if isinstance(value, list) else [value]))
    # Larger whole numbers are no float.
    return all(
        v is None or isinstance(v, float) or (isinstance(v, int) and abs(v) < 2**1000) for v in flat
    )


def curve(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one number, where it was logged; what is not finite leaves a gap."""
    found = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    values = [float(v) if math.isfinite(v) else math.nan for _, v in found]
    return [step for step, _ in found], values


def profile(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Middles of the bins of t and mean values there, over the last tenth of the lines."""
    logged = [row[key] for row in rows if isinstance(row.get(key), list)]
    recent = [row for row in logged[-max(1, len(logged) // 10) :] if len(row) == len(logged[-1])]
    times, values = [], []
    for b, column in enumerate(zip(*recent, strict=True)):
        found = [v for v in column if v is not None]
        times.append((b + 0.5) / len(recent[0]))
        values.append(sum(found) / len(found) if found else math.nan)
    return times, values


def names_of(folders: list[Path]) -> list[str]:
    """Shortest ends of the paths that tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            return names
    raise AssertionError("paths that differ have ends that differ")


def plot_runs(runs: list[str], out: str = "curves.png", keys: list[str] | None = None) -> Path:
    """Draw the training curves of runs against each other.

    Args:
        runs: run folders.
        out: the picture, PNG.
        keys: numbers of metrics.jsonl, one panel each; when left out loss, loss over t, gradient
            norm, learning rate, images per second and share of the peak.

    Returns:
        the picture.
    """
    folders = [Path(run) for run in dict.fromkeys(runs)]
    if not folders:
        raise ValueError("no run was named: ucgm plot RUN RUN ...")
    logs = [read_metrics(folder) for folder in folders]
    known = sorted({key for rows in logs for row in rows for key in row} - {"step"})
    unknown = [key for key in keys or [] if key not in known]
    if unknown:
        raise ValueError(f"no run logged {', '.join(unknown)}; there are {', '.join(known)}")
    path = Path(out)
    if path.suffix != ".png":
        raise ValueError(f"the picture is a PNG: name it with .png, not {out}")
    chosen = keys or [key for key in PANELS if key in known]
    with sole_writer(path, "ucgm plot"):
        _draw(list(zip(names_of(folders), logs, strict=True)), chosen, path)
    for name, rows in zip(names_of(folders), logs, strict=True):
        shown = {k: rows[-1][k] for k in chosen if isinstance(rows[-1].get(k), int | float)}
        last = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
        print(f"{name}: step {rows[-1]['step']}  {last}")
    print(f"picture: {path}")
    return path


def _draw(runs: list[tuple[str, list[dict[str, Any]]]], keys: list[str], path: Path) -> None:
    """One panel per key, two in a row, one colour per run."""
    from matplotlib.figure import Figure

    columns = min(2, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(5.4 * columns, 3.4 * rows + 0.4), dpi=150, layout="constrained")
    for number, key in enumerate(keys):
        title, logarithmic = PANELS.get(key, (key, False))
        axes = figure.add_subplot(rows, columns, number + 1)
        seen: list[float] = []
        for color, (name, log) in enumerate(runs):
            over_time = any(isinstance(row.get(key), list) for row in log)
            places, values = profile(log, key) if over_time else curve(log, key)
            mark = "." if over_time or len(places) < 3 else None
            axes.plot(places, values, color=f"C{color}", label=name, marker=mark, linewidth=1.2)
            seen += [value for value in values if not math.isnan(value)]
        # Below a decade the ticks of a logarithmic axis cannot be read.
        if logarithmic and seen and 0 < 10 * min(seen) < max(seen):
            axes.set_yscale("log")
        if key in FROM_ZERO:
            axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.set_xlabel("t (0 data, 1 noise)" if key == "loss_by_time" else "step")
        axes.grid(alpha=0.3, which="both")
        if number == 0:
            axes.legend(fontsize="small")
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))
