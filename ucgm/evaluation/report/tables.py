"""Rows of a benchmark as Markdown, CSV and text: mean, spread and minimum over the repeats."""

import csv
import io
import statistics
from collections.abc import Sequence
from typing import Any

COLUMNS = {
    "fid": ("FID", 3),
    "fid_heldout": ("FID held-out", 3),
    "sfid": ("sFID", 3),
    "kid": ("KID", 4),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "inception_score": ("IS", 2),
    "accuracy": ("accuracy", 3),
}


def column(metric: str, extractor: str) -> tuple[str, int]:
    """Head and number of digits of a column.

    The Frechet distance is called FID except in DINOv2's features; columns of further extractors
    (``flat.recall``) name them.

    Args:
        metric: as in the scores.
        extractor: the first extractor, whose metrics have plain names.
    """
    other, _, plain = metric.rpartition(".")
    name, digits = COLUMNS[plain]
    if (other or extractor) == "dinov2" and "FID" in name:
        return name.replace("FID", "FD-DINOv2"), digits
    return f"{name} ({other})" if other else name, digits


def label(metric: str, result: dict[str, Any]) -> str:
    """Head of a column of a report."""
    return column(metric, result["protocol"]["extractor"]["name"])[0]


def digits_of(metric: str) -> int:
    """Digits after the point of a column."""
    return column(metric, "")[1]


def summarise(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry per number of steps: ``mean``, ``std`` and ``min`` of each metric over repeats."""
    summary = []
    for steps in sorted({row["steps"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["steps"] == steps]
        scores = {}
        for name in result["metrics"]:
            values = [row["scores"][name] for row in rows]
            scores[name] = {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "min": min(values),
            }
        rates = [row["images_per_second"] for row in rows if row["images_per_second"]]
        summary.append(
            {
                "steps": steps,
                "nfe": statistics.fmean(row["nfe"] for row in rows),
                "repeats": len(rows),
                "images_per_second": statistics.fmean(rates) if rates else None,
                "scores": scores,
            }
        )
    return summary


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table that people read; the last row is real held-out data."""
    head = ["steps", "NFE", *(label(name, result) for name in result["metrics"]), "images/s"]
    cells = []
    for entry in summarise(result):
        row = [str(entry["steps"]), f"{entry['nfe']:g}"]
        for name in result["metrics"]:
            row.append(_cell(entry["scores"][name], digits_of(name)))
        rate = entry["images_per_second"]
        cells.append([*row, f"{rate:,.0f}" if rate else "-"])
    real = result["real"]
    if real:
        row = ["real", "-"]
        for name in result["metrics"]:
            value = real["scores"].get(name)
            row.append("-" if value is None else f"{value:.{digits_of(name)}f}")
        cells.append([*row, "-"])
    return head, cells


def _cell(value: dict[str, Any], digits: int) -> str:
    text = f"{value['mean']:.{digits}f}"
    if value["std"] is not None:
        text += f" ± {value['std']:.{digits}f} (min {value['min']:.{digits}f})"
    return text


def aligned(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are padded, so that it also reads in a terminal."""
    widths = [max(len(row[i]) for row in (head, *cells)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([line(head), rule, *(line(row) for row in cells)])


def footnotes(result: dict[str, Any]) -> list[str]:
    """Everything a reader needs to compare the numbers with others, a sentence each."""
    protocol, real = result["protocol"], result["real"]
    extractor, guidance = protocol["extractor"], protocol["guidance"]
    notes = [
        *(
            f"Extractor {one['name']}, weights sha256 {one['sha256'][:12]}"
            + (f" ({one['note']})." if one["note"] else ".")
            for one in (extractor, *protocol.get("more_extractors", ()))
        ),
        *(
            f"Reference {one['name']} of {one['extractor']}, "
            f"{one['num_samples'] or 'unknown number of'} images, sha256 {one['sha256'][:12]}."
            for one in result["references"]
        ),
        f"{protocol['num_samples']:,} samples per row, {protocol['repeats']} repeat(s), the same "
        f"indices in every row; seed {protocol['seed']}, labels {protocol['labels']}.",
        f"Weights {protocol['weights']} of training step {protocol['training_step']:,}, sha256 "
        f"{protocol['weights_sha256'][:12]}; precision {protocol['precision']}, tiles of "
        f"{protocol['tile']}; guidance scale {guidance['scale']} on t in {guidance['interval']}.",
        f"Sampler {protocol['sampler']}.",
        result["nfe_convention"],
        f"uint8 = {protocol['uint8']}.",
        "KID: mean over 100 subsets of 1,000, or of the smaller set; precision and recall: k = 3.",
        "images/s: sampler and decoder of one process on "
        f"{result['machine']['device']}, first batch of each set excluded.",
    ]
    classes = len(protocol["classes"] or range(protocol["num_classes"]))
    if classes and protocol["labels"] == "balanced" and protocol["num_samples"] % classes:
        notes.append(f"The samples are no multiple of {classes} classes: counts differ by one.")
    if real:
        notes.append(
            f"Row real: {real['num_samples']:,} held-out real images ({real['name']}); its FID is "
            "the noise floor. A generator that memorises has a small FID and a larger FID held-out."
        )
    if extractor["name"] != "inception" or protocol["num_samples"] != 50_000:
        notes.append("Not comparable with published FID-50K of Inception features.")
    return notes


def markdown(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = [f"# {result['name']}: quality against the number of steps", ""]
    lines += [aligned(*table(result)), ""]
    lines += [f"- {note}" for note in footnotes(result)]
    lines += ["", "![FID against steps](fid_vs_steps.png)", ""]
    for entry in summarise(result):
        name = f"grid_steps_{entry['steps']:02d}.png"
        lines += [f"{entry['steps']} steps:", "", f"![{name}]({name})", ""]
    return "\n".join(lines)


def csv_text(result: dict[str, Any]) -> str:
    """One line per number of steps and repeat, full precision."""
    extra = [f"{n}_std" for n in result["metrics"] if n.endswith(("kid", "inception_score"))]
    names = [*result["metrics"], *extra]
    head = ["steps", "repeat", "first_index", "num_samples", "nfe", *names]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*head, "images_per_second", "images_hash"])
    for row in result["rows"]:
        plain = [row[key] for key in ("steps", "repeat", "first_index", "num_samples", "nfe")]
        scores = [repr(row["scores"][name]) for name in names]
        writer.writerow([*plain, *scores, row["images_per_second"], row["images_hash"]])
    return file.getvalue()
