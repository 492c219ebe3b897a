"""Cells of the tables in docs/results, and their parts between two marks."""

import re
import statistics
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs/results"


def cell(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation, as far as there are values."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else ""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def write_part(page: str, name: str, lines: list[str]) -> None:
    """Replace what stands between the marks ``name`` and ``end of name`` of a page of results."""
    path = RESULTS / page
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    text = path.read_text()
    found = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    assert found.search(text), f"{path} has no part {name}"
    path.write_text(found.sub(lambda _: start + "\n".join(lines) + "\n" + end, text))
