"""The report of a benchmark: JSON, CSV, Markdown, HTML, curve, grids, strip."""

import json
from pathlib import Path
from typing import Any

from ucgm.evaluation.report.figures import save_curve
from ucgm.evaluation.report.page import page
from ucgm.evaluation.report.tables import aligned, csv_text, footnotes, markdown, summarise, table
from ucgm.generation.samples import SampleSet
from ucgm.generation.writers import save_grid, save_strip
from ucgm.runtime.files import write_atomic

__all__ = ["summarise", "write_report"]


def write_report(folder: Path, result: dict[str, Any], samples: SampleSet) -> list[Path]:
    """Write all files of a report into ``folder``, print the table, and name the pictures.

    Args:
        folder: an existing folder.
        result: the content of ``benchmark.json``.
        samples: for the grids; the same indices at every step count.

    Raises:
        ValueError: when the disk is full; what was measured is kept.
    """
    try:
        paths, pictures = _write(folder, result, samples)
    except OSError as error:
        raise ValueError(
            f"the report in {folder} could not be written: {error}. All that was measured is kept: "
            "free some space and run the same command again."
        ) from error
    print("", aligned(*table(result)), "", *footnotes(result), "", sep="\n")
    print(*(f"report:  {path}" for path in paths), sep="\n")
    print(*(f"picture: {path}" for path in pictures), sep="\n", flush=True)
    return paths + pictures


def _write(
    folder: Path, result: dict[str, Any], samples: SampleSet
) -> tuple[list[Path], list[Path]]:
    """Texts and pictures of the report."""
    content = result | {"summary": summarise(result)}
    texts = {
        "benchmark.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
        "benchmark.csv": csv_text(result),
        "benchmark.md": markdown(result),
    }
    paths = [folder / name for name in texts]
    for name, text in texts.items():
        write_atomic(folder / name, lambda path, text=text: path.write_text(text))
    pictures = [save_curve(result, folder / "fid_vs_steps.png")]
    columns = []
    for entry in summarise(result):
        path = folder / f"grid_steps_{entry['steps']:02d}.png"
        columns.append(save_grid(samples.with_steps(entry["steps"]), path))
        pictures.append(path)
    pictures.append(save_strip(columns, folder / "strip.png"))
    title = f"{result['name']}: quality against the number of steps"
    text = page([(result, folder)], pictures[0], title)
    write_atomic(folder / "benchmark.html", text)
    return [*paths, folder / "benchmark.html"], pictures
