"""Labels: one check for every place they come from, and the lists that name them by file.

dataset.json   {"labels": [[name, class], ...] or null}: StyleGAN and EDM2 (2312.02696)
labels.csv     file,label: what ``ucgm sample`` writes
"""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MOST_CLASSES = 2**20  # more are a number gone wrong, and a table of labels nobody has memory for
LISTS = ("dataset.json", "labels.csv")


def some_names(names: Sequence[str]) -> str:
    """Names for people: the first twenty, and dots where there are more."""
    return ", ".join(names[:20]) + ", ..." * (len(names) > 20)


def check_labels(
    values: Sequence[Any] | np.ndarray, name: Callable[[int], str], num_classes: int | None = None
) -> np.ndarray:
    """Labels (N,) of any origin as int64; only whole numbers are labels.

    Args:
        values: as they were read.
        name: of item i, for the error.
        num_classes: labels lie below; None: any count of classes that makes sense.

    Raises:
        ValueError: naming the first item whose label is no class.
    """
    count = MOST_CLASSES if num_classes is None else max(num_classes, 1)
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        bad = np.flatnonzero((values < 0) | (values >= count)).tolist()
    else:  # bool is an int to isinstance, and true is no class
        values = values.tolist() if isinstance(values, np.ndarray) else values
        bad = [i for i, v in enumerate(values) if type(v) is not int or not 0 <= v < count]
    if bad:
        found = values[bad[0]]
        shown = repr(found if isinstance(values, list | tuple) else int(found))
        raise ValueError(
            f"{name(bad[0])} has label {shown:.40}, out of range: a class is a whole number from "
            f"0 to {count - 1} ({len(bad)} such items)."
        )
    return np.array(values, dtype=np.int64)


def count_classes(
    labels: np.ndarray,
    name: Callable[[int], str],
    where: str,
    classes: Sequence[str] = (),
    asked: int | None = None,
) -> int:
    """Number of classes of labels (N,), of which none may be without items.

    Args:
        labels: checked.
        name: of item i, for the error.
        where: they are, for the error.
        classes: names, where there are any.
        asked: number of classes that the user gave, of which some may be empty.

    Raises:
        ValueError: naming an item out of range, or a class without items.
    """
    count = asked or len(classes) or int(labels.max()) + 1
    check_labels(labels, name, count)
    present = np.unique(labels)
    if asked or len(present) == count:
        return count
    first = int(np.setdiff1d(np.arange(count), present)[0])
    raise ValueError(
        f"class {classes[first] if classes else first} of {where} has no items: of {count} classes "
        f"{count - len(present)} are empty, and would be trained on nothing. Number them without "
        f"gaps, or keep them with `ucgm encode --num-classes {count}`."
    )


def read_label_list(content: bytes, where: str) -> dict[str, int] | None:
    """File names and their classes, as one of ``LISTS`` gives them; None: there are no classes.

    Args:
        content: of the file.
        where: its name, which says the kind.

    Raises:
        ValueError: another form, a label that is no class, or a file that is named twice.
    """
    try:
        entries = _csv(content) if where.endswith(".csv") else _json(content)
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        form = "file,label" if where.endswith(".csv") else '{"labels": [[name, class], ...]}'
        raise ValueError(
            f"{where} is no list {form}: {str(error) or type(error).__name__}."
        ) from error
    if entries is None:
        return None
    places: dict[str, str] = {}
    for place, name, _ in entries:
        if name in places:
            raise ValueError(f"{where} names {name} twice, in {places[name]} and {place}.")
        places[name] = place
    check_labels([e[2] for e in entries], lambda i: f"{entries[i][1]} in {where}")
    return {name: label for _, name, label in entries}


def _json(content: bytes) -> list[tuple[str, str, Any]] | None:
    labels = json.loads(content)["labels"]
    if labels is None:
        return None
    for number, pair in enumerate(labels, 1):
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"entry {number} is {pair!r:.60}")
    return [(f"entry {i} (class {k})", name, k) for i, (name, k) in enumerate(labels, 1)]


def _csv(content: bytes) -> list[tuple[str, str, Any]]:
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
    entries = []
    for row in rows:
        name, label = row.get("file"), row.get("label")
        if not name or None in row:
            raise ValueError(f"line {rows.line_num} is {dict(row)!r:.80}")
        known = int(label) if label and re.fullmatch(r"[0-9]{1,9}", label) else label
        entries.append((f"line {rows.line_num} (class {label})", name, known))
    return entries
