"""Several benchmarks on one page, with paired differences.

Runs that were measured with equal seeds, labels, counts, extractor and reference used the same
noise for the same index, so their difference is a paired one.  Over R repeats (disjoint index
ranges) with differences d_r to the first run,

    mean d +- t(0.975, R - 1) sd(d) / sqrt(R)

is a 95 % interval.  One repeat gives a difference without an interval; blocks of one set do not
replace repeats, since the bias of FID depends on n.
"""

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ucgm.evaluation.report.figures import save_curves
from ucgm.evaluation.report.page import page
from ucgm.evaluation.report.saved import read_report
from ucgm.evaluation.report.tables import aligned, headline, label, matrix
from ucgm.evaluation.scoring import RATIOS
from ucgm.runtime.files import holds_files, sole_writer, write_atomic

# Student's t, 97.5 %, for 1, 2, ... degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2)
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)
MUST_AGREE = ("num_samples", "repeats", "labels", "classes", "seed", "uint8")


def compare_run(reports: list[str], out_dir: str = "comparison", metric: str = "fid") -> Path:
    """Benchmarks of several runs side by side.

    Args:
        reports: folders of benchmarks, or their benchmark.json; the first is the base.
        out_dir: where the page goes.
        metric: whose differences are listed.

    Returns:
        the path of the page.
    """
    if len(reports) < 2:
        raise ValueError("a comparison needs at least two reports.")
    results = [read_report(report) for report in reports]
    for result, folder in results:
        if metric not in result["metrics"]:
            raise ValueError(f"{folder} has no {metric}: choose from {result['metrics']}.")
    check_comparable(results, metric)
    folder, names = Path(out_dir), distinct([result["name"] for result, _ in results])
    runs = {name: result for name, (result, _) in zip(names, results, strict=True)}
    differences = paired_differences(runs, metric)
    shown = _shown(runs, differences, metric)
    content = {"metric": metric, "base": names[0], "differences": differences}
    with sole_writer(folder, "ucgm compare"):
        if holds_files(folder) and not (folder / "comparison.json").is_file():
            raise ValueError(f"{folder} holds other files, nothing was written: choose another.")
        folder.mkdir(exist_ok=True)
        homes, title = [home for _, home in results], " against ".join(names)
        strips = {
            name: strip
            for name, home in zip(names, homes, strict=True)
            if (strip := home / "strip.png").is_file() and "strip" in runs[name]
        }
        curve = save_curves(runs, [metric], folder / "curves.png", strips)
        text = page(runs, homes, metric, curve, title, shown)
        write_atomic(folder / "comparison.html", text)
        write_atomic(folder / "comparison.json", json.dumps(content, indent=2) + "\n")
    print("", aligned(*matrix(runs, metric)), "", headline(runs, metric)[0], "", sep="\n")
    print(aligned(shown["head"], shown["rows"]), "", shown["note"], sep="\n")
    print(f"page: {folder / 'comparison.html'}")
    return folder / "comparison.html"


def _shown(
    runs: dict[str, dict[str, Any]], differences: list[dict[str, Any]], metric: str
) -> dict[str, Any]:
    """Head, rows and note of the differences: a row per run, a column per number of steps."""
    base, *others = runs
    steps = sorted({row["steps"] for row in differences})
    cells = {(row["run"], row["steps"]): _interval(row) for row in differences}
    note = f"{base} is subtracted; the same sample indices on both sides."
    if any(row["half_width"] is None for row in differences):
        note += " One repeat has no interval: benchmark all with --repeats 3."
    else:
        note += " In brackets: 95 % intervals."
    return {
        "head": [f"{label(metric, runs[base])} difference at steps", *map(str, steps)],
        "rows": [[name, *(cells.get((name, n), "-") for n in steps)] for name in others],
        "note": note,
    }


def distinct(names: Sequence[str]) -> list[str]:
    """Names made different by a number where they repeat."""
    found: list[str] = []
    for name in names:
        tried = itertools.chain([name], (f"{name} ({i})" for i in itertools.count(2)))
        found.append(next(other for other in tried if other not in found))
    return found


def check_comparable(results: Sequence[tuple[dict[str, Any], Path]], metric: str) -> None:
    """Refuse to put numbers side by side that do not measure the same.

    Raises:
        ValueError: naming the fact that differs and both values.
    """
    first, home = _facts(*results[0], metric), results[0][1]
    for result, folder in results[1:]:
        for key, (other, shown) in _facts(result, folder, metric).items():
            if other != first[key][0]:
                # Statistics that a machine makes for itself are rounded as its processor does.
                remedy = "one --reference file" if key == "reference" else "equal settings"
                raise ValueError(
                    f"{key} differs: {first[key][1]} in {home}, {shown} in {folder}. Such numbers "
                    f"do not compare: benchmark both with {remedy}."
                )


def _facts(result: dict[str, Any], folder: Path, metric: str) -> dict[str, tuple[Any, Any]]:
    """What decides the values of a metric, to compare and to show.

    Raises:
        ValueError: the report does not say it.
    """
    protocol = result["protocol"]
    extractors = [protocol["extractor"], *protocol.get("more_extractors", ())]
    name = metric.rpartition(".")[0] or extractors[0]["name"]
    used = [entry for entry in extractors if metric.endswith("_mean") or entry["name"] == name]
    names = [entry["name"] for entry in used]
    references = [entry for entry in result["references"] if entry["extractor"] in names]
    plain = metric.rpartition(".")[2]
    ratio = plain.startswith(RATIOS)
    if not ratio:  # a held-out reference follows the other
        references = references[1:2] if plain == "fid_heldout" else references[:1]
    if not references or (ratio and len(references) < 2 * len(used)):
        raise ValueError(f"{folder} does not say what its {metric} was measured with.")
    facts = {key: (protocol.get(key), protocol.get(key)) for key in MUST_AGREE}
    facts["extractor"] = [(one["name"], one["sha256"]) for one in used], used[0]
    digests = [str(reference["sha256"]) for reference in references]
    shown = [f"{one['name']} ({str(one['sha256'])[:12]})" for one in references]
    facts["reference"] = digests, ", ".join(shown)
    return facts


def paired_differences(runs: dict[str, dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Difference of each run to the first at each common number of steps.

    Raises:
        ValueError: there is none.
    """

    def by_repeat(result: dict[str, Any]) -> dict[tuple[int, int], float]:
        return {(row["steps"], row["repeat"]): row["scores"][metric] for row in result["rows"]}

    (first, result), *others = runs.items()
    base, rows = by_repeat(result), []
    for name, result in others:
        other = by_repeat(result)
        common = sorted(base.keys() & other.keys())
        if not common:
            raise ValueError(f"{first} and {name} have no number of steps in common.")
        for steps, keys in itertools.groupby(common, key=lambda key: key[0]):
            values = [other[key] - base[key] for key in keys]
            mean = statistics.fmean(values)
            row = {"run": name, "steps": steps, "difference": mean}
            rows.append(row | {"half_width": half_width(values), "repeats": len(values)})
    return rows


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean; None for one value."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    factor = T_975[freedom - 1] if freedom <= len(T_975) else 1.96 + 2.5 / freedom
    return factor * statistics.stdev(values) / math.sqrt(len(values))


def _interval(row: dict[str, Any]) -> str:
    text = f"{row['difference']:+.4f}"
    if row["half_width"] is None:
        return text
    low, high = (row["difference"] + sign * row["half_width"] for sign in (-1, 1))
    return f"{text} [{low:+.4f}, {high:+.4f}]"
