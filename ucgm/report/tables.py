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


def label(metric: str, result: dict[str, Any]) -> str:
    """Head of a column: the Frechet distance is called FID except in DINOv2's features."""
    name = COLUMNS[metric][0]
    if result["protocol"]["extractor"]["name"] == "dinov2":
        name = name.replace("FID", "FD-DINOv2")
    return name


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
            row.append(_cell(entry["scores"][name], COLUMNS[name][1]))
        rate = entry["images_per_second"]
        cells.append([*row, f"{rate:,.0f}" if rate else "-"])
    real = result["real"]
    if real:
        row = ["real", "-"]
        for name in result["metrics"]:
            value = real["scores"].get(name)
            row.append("-" if value is None else f"{value:.{COLUMNS[name][1]}f}")
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
    extractor = protocol["extractor"]
    first = result["references"][0]
    guidance = protocol["guidance"]
    notes = [
        f"Extractor {extractor['name']}, weights sha256 {extractor['sha256'][:12]}"
        + (f" ({extractor['note']})." if extractor["note"] else "."),
        f"Reference {first['name']}, {first['num_samples'] or 'unknown number of'} images, sha256 "
        f"{first['sha256'][:12]}.",
        f"{protocol['num_samples']:,} samples per row, {protocol['repeats']} repeat(s), the same "
        f"indices in every row; seed {protocol['seed']}, labels {protocol['labels']}.",
        f"Weights {protocol['weights']} of training step {protocol['training_step']:,}, sha256 "
        f"{protocol['weights_sha256'][:12]}; precision {protocol['precision']}; guidance scale "
        f"{guidance['scale']} on t in {guidance['interval']}.",
        f"Sampler {protocol['sampler']}.",
        result["nfe_convention"],
        f"uint8 = {protocol['uint8']}.",
        "KID: mean over 100 subsets of 1,000, or of the smaller set; precision and recall: k = 3.",
        "images/s: sampler and decoder of one process on "
        f"{result['machine']['device']}, first batch of each set excluded.",
    ]
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
    extra = [n for n in ("kid_std", "inception_score_std") if n[:-4] in result["metrics"]]
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
