"""One self-contained HTML page for one or several benchmarks: table, curve, grids, protocol.

Pictures are inlined, nothing is loaded from anywhere, so the page can be mailed and archived.
Values enter the page as JSON and are placed as text, never as markup.
"""

import base64
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ucgm.evaluation.report.tables import footnotes, summarise, table


def page(
    results: Sequence[tuple[dict[str, Any], Path]],
    curve: Path,
    title: str,
    differences: dict[str, Any] | None = None,
) -> str:
    """The HTML.

    Args:
        results: content of each ``benchmark.json`` with its folder, which holds the pictures.
        curve: PNG of the curve.
        title: of the page.
        differences: ``head``, ``rows`` and ``note`` of the paired differences.
    """
    names = distinct([result["name"] for result, _ in results])
    heads: dict[str, None] = {"run": None}
    lines = []
    for name, (result, _) in zip(names, results, strict=True):
        head, cells = table(result)
        heads |= dict.fromkeys(head)
        lines += [{"run": name, **dict(zip(head, row, strict=True))} for row in cells]
    rows = [[line.get(head, "-") for head in heads] for line in lines]  # runs differ in metrics
    steps = sorted({entry["steps"] for result, _ in results for entry in summarise(result)})
    data = {
        "lead": lead(results[0][0]),
        "head": list(heads),
        "rows": rows,
        "curve": inline(curve),
        "differences": differences,
        "steps": steps,
        "runs": [
            {
                "name": name,
                "grids": {
                    count: inline(folder / grid_name(count))
                    for count in steps
                    if (folder / grid_name(count)).is_file()
                },
                "strip": inline(folder / "strip.png"),
            }
            for name, (_, folder) in zip(names, results, strict=True)
        ],
        "protocol": protocol_rows([result for result, _ in results]),
        "notes": footnotes(results[0][0]) if len(results) == 1 else [],
    }
    # No tag can begin in the data: JSON allows the escaped "<".  One pass: what is put in is data.
    parts = {"__TITLE__": html.escape(title), "__DATA__": json.dumps(data).replace("<", "\\u003c")}
    template = files("ucgm.evaluation.report").joinpath("page.html").read_text()
    return re.sub("__TITLE__|__DATA__", lambda found: parts[found[0]], template)


def lead(result: dict[str, Any]) -> str:
    """The sentence above the table."""
    protocol = result["protocol"]
    return (
        f"{protocol['num_samples']:,} samples per row, features of {protocol['extractor']['name']},"
        f" labels {protocol['labels']}, the same sample indices in every row."
    )


def grid_name(steps: int) -> str:
    """File of the grid of a number of steps."""
    return f"grid_steps_{steps:02d}.png"


def inline(path: Path) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def distinct(names: Sequence[str]) -> list[str]:
    """Names made different by a number where they repeat."""
    return [
        name if list(names).count(name) == 1 else f"{name} ({list(names)[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def protocol_rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One line per fact, one column per run."""

    def flat(value: Any, prefix: str) -> dict[str, str]:
        if not isinstance(value, dict):
            return {prefix: json.dumps(value) if not isinstance(value, str) else value}
        lines: dict[str, str] = {}
        for key, inner in value.items():
            lines |= flat(inner, f"{prefix}.{key}" if prefix else key)
        return lines

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
        columns.append(flat(facts, ""))
    keys = dict.fromkeys(key for column in columns for key in column)
    return [[key, *(column.get(key, "-") for column in columns)] for key in keys]
