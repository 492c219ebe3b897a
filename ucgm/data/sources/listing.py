"""Where images and latents come from: everything ``ucgm encode`` accepts, as one numbered list.

    DIR/CLASS/**.jpg      class folders; labels by sorted name, as torchvision and DiT number them
    DIR/**/dataset.json   a list of labels (:mod:`ucgm.data.labels`), or labels.csv; entries are
                          images, or .npy moments (mean and std, 2C channels) as EDM2 (2312.02696)
                          and REPA (2410.06940) write them
    FILE.zip              either of the above inside; a single top folder is looked through
    DIR/*.safetensors     latent shards of LightningDiT and UCGM (:mod:`ucgm.data.latents.shards`)
    hub:OWNER/NAME        a data set of the Hub, or what else datasets.load_dataset takes

The order is fixed by the names, so item i is the same item in every process and after a restart.
"""

import hashlib
import importlib
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ucgm.data.labels import LISTS, check_labels, read_label_list
from ucgm.data.latents.shards import ShardSet
from ucgm.data.pixels import SUFFIXES, UnreadableImage
from ucgm.data.sources.archives import FolderFiles, ZipFiles, read_file
from ucgm.data.sources.source import Content, Source

_SPLIT = re.compile(
    r"(imgs?|images)?[-_ ]?(train|val|valid|validation|test|dev|eval|extra|held[-_ ]?out"
    r"|unlabell?ed)(ing)?[-_ ]?(set|data|imgs?|images|\d{4})?",
    re.IGNORECASE,
)


class FileSource(Source):
    """Items that are files, in a folder or a zip.

    Args:
        where: as the user gave it.
        files: where to read.
    """

    def __init__(self, where: str, files: FolderFiles | ZipFiles) -> None:
        self.where, self.files = where, files
        found = sorted(files.names())
        twice = next((a for a, b in itertools.pairwise(found) if a == b), None)
        if twice is not None:
            raise ValueError(f"{where} holds {twice} twice.")
        if "description/report.json" in found:  # `ucgm data` once wrote into what it described
            found = [name for name in found if not name.startswith("description/")]
        listing = [n for n in found if n.rsplit("/", 1)[-1] in LISTS]
        if listing:
            top = min(name.count("/") for name in listing)
            first = [name for name in listing if name.count("/") == top]
            if len(first) > 1:
                raise ValueError(f"{where} holds {' and '.join(first)}: give one of their folders.")
            names, labels = self._listed(first[0], found)
        else:
            names, labels = self._by_folder(found)
        if not names:
            raise ValueError(f"{where} holds no images ({', '.join(SUFFIXES)}), .npy or shards.")
        arrays = sum(name.endswith(".npy") for name in names)
        if arrays not in (0, len(names)):
            raise ValueError(f"{where} mixes {arrays} .npy and {len(names) - arrays} images.")
        self.content = "moments" if arrays else "images"
        # One array instead of a million strings: small, and loader processes share it.
        self._names = np.array([name.encode("utf-8", "surrogateescape") for name in names])
        self.labels = np.array(labels, dtype=np.int64)
        others = Counter(Path(n).suffix.lower() for n in set(found) - {*names, *listing})
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items()) if kind)
        self.note = f"no images, left out: {kinds}" if kinds else ""

    def entry(self, index: int) -> str:
        """Relative name of the file."""
        return self._names[index].decode("utf-8", "surrogateescape")

    def content_of(self, index: int) -> bytes:
        """Bytes of the file."""
        return self.files.read(self.entry(index))

    def contents_digest(self) -> str:
        """SHA-256 over what changes when a file is written again; no file is read."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self.files.state(self.entry(index)).encode() + b"\0")
        return digest.hexdigest()

    def _listed(self, listing: str, found: Sequence[str]) -> tuple[list[str], list[int]]:
        """Names and labels of a list of labels, relative to it."""
        folder, _, file = listing.rpartition("/")
        prefix = folder + "/" if folder else ""
        pairs = read_label_list(self.files.read(listing), listing)
        kinds = (*SUFFIXES, ".npy") if file == "dataset.json" else SUFFIXES
        there = {n for n in found if n.startswith(prefix) and n.lower().endswith(kinds)}
        if pairs is None:
            self.unlabelled = True
            pairs = dict.fromkeys(there, 0)
        else:
            pairs = {prefix + name: label for name, label in pairs.items()}
        for some, others, what in (
            (pairs.keys(), there, f"{listing} lists {{}}, which {self.where} does not hold"),
            (there, pairs.keys(), f"{self.where} holds {{}}, which {listing} does not list"),
        ):
            if lost := sorted(some - others):
                raise ValueError(f"{what.format(lost[0])} ({len(lost)} such files).")
        names = sorted(pairs)
        return names, [pairs[name] for name in names]

    def _by_folder(self, found: Sequence[str]) -> tuple[list[str], list[int]]:
        """Names and labels of class folders; a flat folder has no classes."""
        names = [n for n in found if n.lower().endswith(SUFFIXES)]
        skip = 0
        if names and isinstance(self.files, ZipFiles):
            tops = {n.split("/")[0] for n in names if "/" in n}
            skip = int(len(tops) == 1 and all(n.count("/") >= 2 for n in names))
        depths = {n.count("/") - skip for n in names}
        if depths == {0}:
            self.unlabelled = True
            return names, [0] * len(names)
        if 0 in depths:
            lost = next(n for n in names if n.count("/") == skip)
            raise ValueError(f"{lost} in {self.where} lies in no class folder: move or delete it.")
        classes = sorted({n.split("/")[skip] for n in found if n.count("/") > skip})
        splits = sum(_SPLIT.fullmatch(name) is not None for name in classes)
        deep = bool(depths) and min(depths) >= 2
        if (deep and len(classes) <= 3) or splits >= min(2, len(classes)) > 0:
            raise ValueError(
                f"{self.where} holds {', '.join(classes[:8])}"
                f"{' with folders inside' if deep else ', which are splits and no classes'}: give "
                f"the folder whose subfolders are the classes, such as {self.where}/{classes[0]}."
            )
        number = {name: k for k, name in enumerate(classes)}
        labels = [number[n.split("/")[skip]] for n in names]
        empty = sorted(set(range(len(classes))) - set(labels))
        if empty:
            raise ValueError(
                f"class folder {classes[empty[0]]} of {self.where} holds no images ({len(empty)} "
                "such classes): its number would be trained on nothing. Fill or delete it."
            )
        self.classes = tuple(classes)
        return names, labels


class HubSource(Source):
    """Rows of a ``datasets.Dataset`` with an image and a label column.

    Args:
        where: as the user gave it.
        rows: the data set, random access.
        image_column: name of the column of images.
        label_column: name of the column of classes; None: no classes.
    """

    def __init__(self, where: str, rows: Any, image_column: str, label_column: str | None) -> None:
        for column in (image_column, label_column):
            if column is not None and column not in rows.column_names:
                raise ValueError(
                    f"{where} has no column {column!r}: choose from {rows.column_names} with "
                    "--image-column and --label-column."
                )
        self.where, self.column = where, image_column
        as_stored = importlib.import_module("datasets").Image(decode=False)
        try:
            self.rows = rows.cast_column(image_column, as_stored)
        except Exception as error:  # datasets and pyarrow have their own errors
            raise ValueError(f"{where} has no images in {image_column!r}: {error}") from error
        if not len(rows):
            raise ValueError(f"{where} has no rows.")
        if label_column is None:
            self.unlabelled = True
            self.labels = np.zeros(len(rows), dtype=np.int64)
            return
        values = list(rows[label_column])
        try:
            self.labels = check_labels(values, self.place)
        except ValueError as error:
            raise ValueError(f"{error} Name another --label-column, or null for none.") from None
        self.classes = tuple(getattr(rows.features[label_column], "names", None) or ())

    def content_of(self, index: int) -> bytes:
        """Bytes of the image file in the row."""
        cell = self.rows[int(index)][self.column] or {}
        if cell.get("bytes") is not None:
            return cell["bytes"]
        if cell.get("path") is None:
            raise UnreadableImage("there is no image in this row")
        return read_file(cell["path"])


class ShardSource(Source):
    """Rows of latent shards that have no codec yet."""

    content: Content = "latents"

    def __init__(self, where: str, paths: Sequence[Path]) -> None:
        self.where = where
        self.rows = ShardSet(paths)
        shards = range(len(self.rows.shards))
        self.labels = np.concatenate([self.rows.labels(n) for n in shards]).astype(np.int64)

    def names_digest(self) -> str:
        """SHA-256 over file names, row counts and labels."""
        digest = hashlib.sha256(self.labels.tobytes())
        for shard in self.rows.shards:
            digest.update(f"{shard.path.name} {shard.rows}\0".encode())
        return digest.hexdigest()


def open_source(
    where: str,
    split: str = "train",
    image_column: str = "image",
    label_column: str | None = "label",
) -> Source:
    """Find out what ``where`` is, and list it.

    Args:
        where: see the head of this file.
        split: of a Hub data set.
        image_column: of a Hub data set.
        label_column: of a Hub data set; None: no classes.

    Raises:
        ValueError: nothing there, or nothing that can be read, with the remedy.
    """
    if where.startswith("hub:"):
        try:
            load_dataset = importlib.import_module("datasets").load_dataset
        except ImportError as error:
            raise ValueError("Hub data need one more package: pip install datasets") from error
        try:
            rows = load_dataset(where.removeprefix("hub:"), split=split)
        except Exception as error:  # datasets and huggingface_hub have their own errors
            raise ValueError(f"{where} (split {split}) cannot be opened: {error}") from error
        return HubSource(where, rows, image_column, label_column)
    path = Path(where)
    if path.is_file() and path.suffix.lower() == ".zip":
        return FileSource(where, ZipFiles(path))
    if not path.is_dir():
        raise ValueError(
            f"{where} is neither a folder nor a .zip; a Hub data set is written hub:OWNER/NAME."
        )
    shards = sorted(path.glob("*.safetensors"))
    if shards:
        return ShardSource(where, shards)
    try:
        return FileSource(where, FolderFiles(path))
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
