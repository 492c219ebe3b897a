"""The report of a benchmark: JSON, CSV, Markdown, HTML, curve, bars, grids, strip."""

import json
from pathlib import Path
from typing import Any

from ucgm.evaluation.report.figures import save_curves, save_encoders
from ucgm.evaluation.report.page import grid_name, lead, page
from ucgm.evaluation.report.tables import (
    ENCODERS,
    aligned,
    chief,
    csv_text,
    encoders_sentence,
    footnotes,
    headline,
    markdown,
    summarise,
    table,
)
from ucgm.generation.samples import SampleSet
from ucgm.generation.writers import grid_indices, names_at, save_grid, save_strip
from ucgm.runtime.files import write_atomic


def write_report(folder: Path, result: dict[str, Any], samples: SampleSet) -> None:
    """Write all files of a report into ``folder``, and print the table and the result.

    Args:
        folder: an existing folder.
        result: the content of ``benchmark.json``, which the labels of the strip are added to.
        samples: for the grids; the same indices at every step count.
    """
    columns = []
    for entry in summarise(result):
        path = folder / grid_name(entry["steps"])
        columns.append(save_grid(samples.with_steps(entry["steps"]), path))
    save_strip(columns, folder / "strip.png")
    result["strip"] = names_at(samples, grid_indices(samples)[:, 0])
    runs = {result["name"]: result}
    frechet = ("fid", "fid_heldout", "sfid")
    own = chief(result)
    order = [own, *(name for name in result["metrics"] if name != own)]
    curves = [name for name in order if name.rpartition(".")[2] in frechet]
    curve = folder / "fid_vs_steps.png"
    save_curves(runs, curves or order[:1], curve)
    if said := encoders_sentence(result):
        save_encoders(result, folder / ENCODERS)
    title = f"{result['name']}: quality against the number of steps"
    content = result | {"summary": summarise(result)}
    for name, text in {
        "benchmark.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
        "benchmark.csv": csv_text(result),
        "benchmark.md": markdown(result),
        "benchmark.html": page(runs, [folder], chief(result), curve, title),
    }.items():
        write_atomic(folder / name, text)
    head, cells, _ = table(runs)
    sentence, _ = headline(runs, chief(result))
    warning = footnotes(result)[-1:]
    sentences = [text for text in (sentence, said, lead(result), *warning) if text]
    print("", aligned(head, cells), "", *sentences, "", sep="\n")
    print(f"report:  {folder / 'benchmark.html'} (all of it; also .md, .csv, .json and pictures)")
