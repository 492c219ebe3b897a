"""The embedded data: 1,797 scans of handwritten digits, 8x8 pixels of 17 grey levels.

They ship with scikit-learn (the test part of the UCI set "Optical Recognition of Handwritten
Digits", E. Alpaydin and C. Kaynak, 1998), so nothing is downloaded.  Levels 0..16 map to

    x = level / 8 - 1   in [-1, 1].

The file is ordered by writer: a contiguous split has other writers on each side, and the Frechet
distance between its halves is about six times that of a stratified split.  The split here shuffles
within each class with a fixed seed and holds out every fourth sample, so both parts have all
classes in equal proportion, forever the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ucgm.data.dataset import DataConfig, Dataset


class DigitsDataset(Dataset):
    """Digits in memory: x (1, 8, 8) in [-1, 1], ten classes."""

    shape = (1, 8, 8)
    num_classes = 10
    class_names = tuple("0123456789")
    lossless = True
    extractor = "digits"

    def __init__(self, split: str = "train") -> None:
        self.name = f"digits-{split}"
        images, labels = _scans()
        test = _held_out(labels)
        keep = {"train": ~test, "test": test, "all": np.ones_like(test)}[split]
        self.x = torch.from_numpy(images[keep])
        self.y = torch.from_numpy(labels[keep])

    def __len__(self) -> int:
        """Number of scans: 1,343 for training, 454 held out."""
        return len(self.y)

    def read(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Gather x (B, 1, 8, 8) float32 and y (B,) int64."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return self.x[rows], self.y[rows]


@dataclass(frozen=True)
class Digits(DataConfig):
    """Handwritten digits, 8x8, embedded: the data of the demo and of the tests."""

    split: Literal["train", "test", "all"] = "train"
    """train (1,343 scans), test (454 held out, same classes) or all."""

    def open(self) -> DigitsDataset:
        """Read the scans from scikit-learn."""
        return DigitsDataset(self.split)

    def held_out(self) -> "Digits | None":
        """The test split, for the training split."""
        return Digits("test") if self.split == "train" else None


@lru_cache(maxsize=1)
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans in the order of the file: (1797, 1, 8, 8) float32 and (1797,) int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "the digits ship with scikit-learn, which is not installed: pip install 'ucgm[data]'"
        ) from error
    levels, labels = load_digits(return_X_y=True)
    images = np.asarray(levels, dtype=np.float32).reshape(-1, 1, 8, 8) / 8.0 - 1.0
    return images, np.asarray(labels, dtype=np.int64)


def _held_out(labels: np.ndarray) -> np.ndarray:
    """(N,) bool: every fourth of each class after a fixed shuffle."""
    shuffle = np.random.RandomState(0)  # RandomState is frozen by numpy's policy: same on all
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = shuffle.permutation(np.flatnonzero(labels == label))
        test[members[::4]] = True
    return test
