"""Rows of a benchmark as Markdown, CSV and text: mean, spread and minimum over the repeats."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = {
    "fid": ("FID", 3),
    "fid_heldout": ("FID held-out", 3),
    "fdr": ("FDr", 3),
    "fdr_mean": ("FDr, mean", 3),
    "sfid": ("sFID", 3),
    "kid": ("KID", 4),
    "sw": ("SW", 4),
    "swr": ("SWr", 3),
    "swr_mean": ("SWr, mean", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "inception_score": ("IS", 2),
    "accuracy": ("accuracy", 3),
}
ENCODERS = "encoders.png"  # the picture of several encoders
SEEN = "†"  # of scores in features that the run was trained on
HIGHER_IS_BETTER = ("precision", "recall", "inception_score", "accuracy")


def column(metric: str, extractor: str = "") -> tuple[str, int]:
    """Head and number of digits of a column.

    The Frechet distance is called FID except in features of DINOv2 or a random network; columns of
    further extractors (``flat.recall``) name them.

    Args:
        metric: as in the scores.
        extractor: the first extractor, whose metrics have plain names.
    """
    other, _, plain = metric.rpartition(".")
    name, digits = COLUMNS[plain]
    distance = {"dinov2": "FD-DINOv2", "random": "FD-random"}.get(other or extractor)
    if distance and "FID" in name:
        return name.replace("FID", distance), digits
    return f"{name} ({other})" if other else name, digits


def label(metric: str, *results: dict[str, Any]) -> str:
    """Head of a column of reports, marked where one of the runs was trained on its features."""
    mark = f" {SEEN}" if any(trained_on(metric, result) for result in results) else ""
    return column(metric, results[0]["protocol"]["extractor"]["name"])[0] + mark


def trained_on(metric: str, result: dict[str, Any]) -> bool:
    """Whether the run was trained on the encoder of a metric, or one of its name."""
    protocol = result["protocol"]
    encoders = [protocol["extractor"], *protocol.get("more_extractors", ())]
    prefix, _, plain = metric.rpartition(".")
    asked = encoders if plain.endswith("_mean") else encoders[:1]
    asked = [e for e in encoders if e["name"] == prefix] if prefix else asked
    seen = {value for e in protocol.get("trained_on", ()) for value in (e["name"], e["sha256"])}
    return any(not seen.isdisjoint((e["name"], e["sha256"])) for e in asked)


def chief(result: dict[str, Any]) -> str:
    """The metric of the headline: the first whose encoder the run was not trained on."""
    metrics = result["metrics"]
    return next((metric for metric in metrics if not trained_on(metric, result)), metrics[0])


def summarise(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry per number of steps: ``mean``, ``std`` and ``min`` of each metric over repeats."""
    summary = []
    for steps in sorted({row["steps"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["steps"] == steps]
        scores = {}
        for name in result["metrics"]:
            values = [row["scores"][name] for row in rows]
            std = statistics.stdev(values) if len(values) > 1 else None
            scores[name] = {"mean": statistics.fmean(values), "std": std, "min": min(values)}
        rates = [row["images_per_second"] for row in rows if row["images_per_second"]]
        entry = {"steps": steps, "nfe": statistics.fmean(row["nfe"] for row in rows)}
        entry |= {"repeats": len(rows), "scores": scores}
        summary.append(entry | {"images_per_second": statistics.fmean(rates) if rates else None})
    return summary


def table(
    runs: Mapping[str, dict[str, Any]],
) -> tuple[list[str], list[list[str]], set[tuple[int, int]]]:
    """Head and cells of the table that people read, and which (row, column) are the best.

    The last row of a run is real held-out data.

    Args:
        runs: content of ``benchmark.json`` by name, which is a column where there are several.
    """
    heads = dict.fromkeys(["run"] * (len(runs) > 1) + ["steps", "NFE"])
    lines: list[dict[str, str]] = []
    best: dict[str, tuple[float, int]] = {}
    for name, result in runs.items():
        own = set(result["metrics"])
        having = {m: [r for r in runs.values() if m in r["metrics"]] for m in own}
        labels = {m: label(m, result, *having[m]) for m in result["metrics"]}
        heads |= dict.fromkeys(labels.values())
        for entry in summarise(result):
            rate = entry["images_per_second"]
            line = {"run": name, "steps": str(entry["steps"]), "NFE": f"{entry['nfe']:g}"}
            line["images/s"] = f"{rate:,.0f}" if rate else "-"
            for metric, head in labels.items():
                line[head] = cell(entry["scores"][metric], metric)
                place = (rank(entry["scores"][metric]["mean"], metric), len(lines))
                best[head] = min(place, best.get(head, place))
            lines.append(line)
        if result["real"]:
            scores = {m: v for m, v in result["real"]["scores"].items() if m in labels}
            real = {labels[m]: f"{value:.{column(m)[1]}f}" for m, value in scores.items()}
            lines.append({"run": name, "steps": "real"} | real)
    order = [*heads, "images/s"]
    bold = {(row, order.index(head)) for head, (_, row) in best.items()}
    return order, [[line.get(head, "-") for head in order] for line in lines], bold


def rank(value: float, metric: str) -> float:
    """A number that is smaller for better values of a metric."""
    return -value if metric.rpartition(".")[2] in HIGHER_IS_BETTER else value


def headline(runs: Mapping[str, dict[str, Any]], metric: str) -> tuple[str, int]:
    """The sentence that says the result, and the number of steps it was found at."""
    found = [(name, entry) for name, result in runs.items() for entry in summarise(result)]
    name, entry = min(found, key=lambda pair: rank(pair[1]["scores"][metric]["mean"], metric))
    value, steps = cell(entry["scores"][metric], metric), entry["steps"]
    where = f"{steps} step{'s' * (steps > 1)} of {name}"
    sentence = f"The best {label(metric, runs[name])} is {value}, at {where}."
    if trained_on(metric, runs[name]):
        sentence += " It was trained on these features: ask another --extractor."
    return sentence, steps


def encoders(result: dict[str, Any]) -> dict[str, str]:
    """The FDr of each encoder, by the name to show, marked where the run was trained on it.

    Empty where fewer than two encoders have one: there is nothing to set side by side.
    """
    first = result["protocol"]["extractor"]["name"]
    found = [m for m in result["metrics"] if m.rpartition(".")[2] == "fdr"]
    names = {m: m.rpartition(".")[0] or first for m in found}
    shown = {f"{names[m]} {SEEN}" if trained_on(m, result) else names[m]: m for m in found}
    return shown if len(shown) > 1 else {}


def encoders_sentence(result: dict[str, Any]) -> str:
    """What the picture of the encoders says; empty where there is none."""
    if not (shown := encoders(result)):
        return ""
    best = min(summarise(result), key=lambda entry: entry["scores"]["fdr_mean"]["mean"])
    values = {name: best["scores"][metric]["mean"] for name, metric in shown.items()}
    near, far = (pick(values, key=values.__getitem__) for pick in (min, max))
    steps = f"{best['steps']} steps are" if best["steps"] > 1 else "1 step is"
    mean = cell(best["scores"]["fdr_mean"], "fdr_mean") + f" {SEEN}" * trained_on(
        "fdr_mean", result
    )
    return (
        f"{steps} best over {len(shown)} encoders: FDr is {mean} on average (real images: 1), "
        f"nearest to real images by {near} ({values[near]:.3f}) and farthest by {far} "
        f"({values[far]:.3f})."
    )


def matrix(runs: Mapping[str, dict[str, Any]], metric: str) -> tuple[list[str], list[list[str]]]:
    """Head and cells of one metric: a row per run, a column per number of steps."""
    entries = {
        name: {entry["steps"]: cell(entry["scores"][metric], metric) for entry in summarise(result)}
        for name, result in runs.items()
    }
    steps = sorted({count for row in entries.values() for count in row})
    head = [f"{label(metric, next(iter(runs.values())))} at steps", *map(str, steps)]
    return head, [[name, *(row.get(n, "-") for n in steps)] for name, row in entries.items()]


def cell(value: dict[str, Any], metric: str) -> str:
    """Mean, deviation and minimum of a score over repeats."""
    digits = column(metric)[1]
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
        f"{protocol['num_samples']:,} samples per row, repeats: {protocol['repeats']}, the same "
        f"indices in every row; seed {protocol['seed']}, labels {protocol['labels']}.",
        f"Weights {protocol['weights']} of training step {protocol['training_step']:,}, sha256 "
        f"{protocol['weights_sha256'][:12]}; precision {protocol['precision']}, tiles of "
        f"{protocol['tile']}; guidance scale {guidance['scale']} on t in {guidance['interval']}.",
        "Sampler: " + ", ".join(f"{k} {v}" for k, v in protocol["sampler"].items()) + ".",
        result["nfe_convention"],
        f"uint8 = {protocol['uint8']}.",
        "KID: mean over 100 subsets of 1,000, or of the smaller set; precision and recall: k = 3; "
        "SW: 1,024 directions.",
        "images/s: sampler and decoder of one process on "
        f"{result['machine']['device']}, first batch of each set excluded.",
    ]
    classes = len(protocol["classes"] or range(protocol["num_classes"]))
    if classes and protocol["labels"] == "balanced" and protocol["num_samples"] % classes:
        notes.append(f"The samples are no multiple of {classes} classes: counts differ by one.")
    if real:
        count = f"{real['num_samples']:,}" if real["num_samples"] else "unknown number of"
        notes.append(
            f"Row real: {count} held-out real images ({real['name']}); its FID is the "
            "noise floor, and the unit of FDr. A generator that memorises has a small FID and "
            "a larger FID held-out. SWr divides by the SW of as many real images."
        )
        if 0 < (real["num_samples"] or 0) < protocol["num_samples"]:
            notes.append(
                "There are fewer held-out images than samples: FDr comes out too low, because FID "
                "falls with the number of images. SWr does not."
            )
    if known := protocol.get("trained_on"):
        notes.append(
            f"{SEEN} The run was trained on {', '.join(e['name'] for e in known)}: a score in "
            "these features is what it was asked for. The headline is of another encoder where "
            "there is one."
        )
    published = extractor["name"] == "inception" and protocol["num_samples"] == 50_000
    notes.append(
        "Compare with published FID-50K of the same reference and labels only."
        if published
        else "Not comparable with published FID-50K of Inception features."
    )
    if extractor["name"] == "random":
        notes[-1] += (
            " Random features miss faults that an eye sees: look at the strip before you choose a "
            "number of steps by them."
        )
    return notes


def markdown(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    runs = {result["name"]: result}
    head, cells, bold = table(runs)
    for row, column_number in bold:
        cells[row][column_number] = f"**{cells[row][column_number]}**"
    lines = [f"# {result['name']}: quality against the number of steps", ""]
    lines += [headline(runs, chief(result))[0], "", aligned(head, cells), ""]
    lines += [f"- {note}" for note in footnotes(result)]
    lines += ["", "![FID against steps](fid_vs_steps.png)", ""]
    if said := encoders_sentence(result):
        lines += [said, "", f"![FDr of each encoder]({ENCODERS})", ""]
    steps = [entry["steps"] for entry in summarise(result)]
    for count in steps:
        name = f"grid_steps_{count:02d}.png"
        lines += [f"{count} steps:", "", f"![{name}]({name})", ""]
    rows, columns = ", ".join(map(str, steps)), ", ".join(result["strip"])
    lines += [f"Rows: {rows} steps. Columns: {columns}.", "", "![strip.png](strip.png)", ""]
    return "\n".join(lines)


def csv_text(result: dict[str, Any]) -> str:
    """One line per number of steps and repeat, full precision."""
    head = ["steps", "repeat", "first_index", "num_samples", "nfe", *result["rows"][0]["scores"]]
    head += ["images_per_second", "images_hash"]
    file = io.StringIO()
    writer = csv.DictWriter(file, head, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **row["scores"]} for row in result["rows"])
    return file.getvalue()
