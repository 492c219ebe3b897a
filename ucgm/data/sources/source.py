"""What every source is to ``ucgm encode`` and to sets of images: a numbered list of items."""

import hashlib
from typing import Literal

import numpy as np

from ucgm.data.labels import count_classes

Content = Literal["images", "moments", "latents"]


class Source:
    """A numbered list of labelled items.

    Attributes:
        where: as the user gave it.
        content: ``images``, ``moments`` (.npy of mean and std) or ``latents`` (shards).
        labels: (N,) int64.
        classes: one name per class; empty when the source has none.
        unlabelled: whether there are no classes at all; all labels are then 0.
        note: what was left out, for people; empty where nothing was.
    """

    where: str
    content: Content = "images"
    labels: np.ndarray
    classes: tuple[str, ...] = ()
    unlabelled: bool = False
    note: str = ""

    def __len__(self) -> int:
        """Number of items."""
        return len(self.labels)

    def entry(self, index: int) -> str:
        """Name of an item for people: of its file, or its row."""
        return f"row {index}"

    def content_of(self, index: int) -> bytes:
        """The item's file.

        Raises:
            OSError: when it cannot be read at all; damaged content is found later.
        """
        raise NotImplementedError

    def count_classes(self, asked: int | None = None) -> int:
        """Number of classes, none of them without items unless that many are ``asked`` for.

        Raises:
            ValueError: naming an item out of range, or an empty class.
        """
        if self.unlabelled:
            return 0
        return count_classes(self.labels, self.place, self.where, self.classes, asked)

    def place(self, index: int) -> str:
        """An item and where it is, for errors."""
        return f"{self.entry(index)} in {self.where}"

    def names_digest(self) -> str:
        """SHA-256 over names, order and labels: changes when the list changes."""
        digest = hashlib.sha256(self.labels.tobytes())
        for index in range(len(self)):
            digest.update(self.entry(index).encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()

    def contents_digest(self) -> str:
        """What changes when an item does, as far as that can be told without reading all."""
        return ""
