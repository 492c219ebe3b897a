"""One self-contained HTML page for one or several benchmarks.

Pictures are inlined, nothing is loaded from anywhere, so the page can be mailed and archived.
Values enter the page as JSON and are placed as text, never as markup.
"""

import base64
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ucgm.evaluation.report.tables import (
    ENCODERS,
    encoders_sentence,
    footnotes,
    headline,
    summarise,
    table,
)
from ucgm.runs.config import flat
from ucgm.runtime.terminal import printable


def page(
    runs: Mapping[str, dict[str, Any]],
    folders: list[Path],
    metric: str,
    curve: Path,
    title: str,
    differences: dict[str, Any] | None = None,
) -> str:
    """The HTML.

    Args:
        runs: content of each ``benchmark.json`` by name.
        folders: of the runs, which hold their pictures.
        metric: whose best value is the headline.
        curve: PNG of the curve.
        title: of the page.
        differences: ``head``, ``rows`` and ``note`` of the paired differences.
    """
    head, rows, bold = table(runs)
    sentence, best = headline(runs, metric)
    steps = {name: [e["steps"] for e in summarise(result)] for name, result in runs.items()}
    first = next(iter(runs.values()))
    said = encoders_sentence(first) if len(runs) == 1 else ""
    data = {
        "headline": sentence,
        "lead": lead(first),
        "head": head,
        "rows": rows,
        "bold": sorted(bold),
        "curve": inline(curve),
        "encoders": {"sentence": said, "picture": inline(folders[0] / ENCODERS)} if said else None,
        "differences": differences,
        "steps": sorted({count for counts in steps.values() for count in counts}),
        "best": best,
        "runs": [
            {
                "name": name,
                "grids": {count: inline(folder / grid_name(count)) for count in steps[name]},
                "strip": inline(folder / "strip.png"),
                "rows": [f"{count} step{'s' * (count > 1)}" for count in steps[name]],
                "columns": runs[name].get("strip", []),
            }
            for name, folder in zip(runs, folders, strict=True)
        ],
        "protocol": protocol_rows(list(runs.values())),
        "notes": footnotes(first) if len(runs) == 1 else [],
    }
    # No tag can begin in the data: JSON allows the escaped "<".  One pass: what is put in is data.
    parts = {
        "__TITLE__": html.escape(printable(title)),
        "__DATA__": json.dumps(data).replace("<", "\\u003c"),
    }
    template = files("ucgm.evaluation.report").joinpath("page.html").read_text()
    return re.sub("__TITLE__|__DATA__", lambda found: parts[found[0]], template)


def lead(result: dict[str, Any]) -> str:
    """What the numbers of the table are of."""
    protocol = result["protocol"]
    return (
        f"{protocol['num_samples']:,} samples per row, features of {protocol['extractor']['name']},"
        f" labels {protocol['labels']}, the same sample indices in every row."
    )


def grid_name(steps: int) -> str:
    """File of the grid of a number of steps."""
    return f"grid_steps_{steps:02d}.png"


def inline(path: Path) -> str | None:
    """A PNG as a data URL; None where there is no file."""
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def protocol_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """One line per fact, one column per run."""
    columns = []
    for result in results:
        facts = {
            **result["protocol"],
            "machine": result["machine"],
            "nfe": result["nfe_convention"],
            **{f"reference {i}": part for i, part in enumerate(result["references"])},
            **{
                f"images_hash {row['steps']} steps, repeat {row['repeat']}": row["images_hash"]
                for row in result["rows"]
            },
        }
        columns.append(flat(facts))
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [[key, *(column.get(key, "-") for column in columns)] for key in keys]
    return [[v if isinstance(v, str) else json.dumps(v) for v in row] for row in rows]
