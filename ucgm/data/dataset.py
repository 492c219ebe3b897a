"""What every data set is to the trainer, the sampler and the benchmark.

A *config* (small, frozen, readable in YAML) opens a *data set* (tensors or files).  A data set
hands out whole batches: ``dataset[indices]`` of a list is one gather, without per-sample Python.
Values are in the space the network works in (pixels in [-1, 1], or normalised latents);
``decode`` is the only way from there to uint8 images.

Reading is two steps, so that the second can run on the device: ``read`` gathers what is stored
(loader processes do this), ``prepare`` turns it into x:

    dataset[indices] = (prepare(stored), y)   with   (stored, y) = read(indices)

A *mirrored* set of n samples also answers for n..2n-1: index n + i is sample i flipped left to
right.  Who draws the indices decides about the flips; the set itself has no randomness.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ucgm.data.latents.codec import Codec
from ucgm.data.pixels import to_uint8
from ucgm.runtime.randomness import RowRandom
from ucgm.runtime.values import check_values


def flips_fit(class_names: Sequence[str]) -> bool:
    """Whether a mirrored sample is of the same class: not so where these are letters or digits."""
    return not class_names or any(len(name) > 1 for name in class_names)


class Dataset(torch.utils.data.Dataset, ABC):
    """A labelled set of arrays of one shape.

    Attributes:
        name: short name for reports, for example ``digits-train``.
        shape: (C, H, W) of one x.
        num_classes: number of classes; 0 when the data have no labels.
        class_names: one name per class, empty when there are none.
        lossless: whether ``decode`` gives back the stored image (pixels do, latents do not), so
            that the set itself can serve as the reference of a benchmark.
        extractor: name of the feature extractor for such images.
        mirrored: whether index ``len(self) + i`` is sample i flipped left to right.
        sampled: whether :meth:`prepare` draws a sample where it is given random numbers.
        decodes: whether ``decode`` can be called; not where an autoencoder is unknown.
        codec: between pixels and latents; None where the network works on pixels in memory.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    lossless: bool = False
    extractor: str = "inception"
    mirrored: bool = False
    sampled: bool = False
    decodes: bool = True
    codec: Codec | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """One gather of what is stored, (B, ...) of any dtype, and y (B,) int64."""

    def prepare(self, stored: Tensor, random: RowRandom | None = None) -> Tensor:
        """What :meth:`read` gave, on any device, to x (B, C, H, W) float32 on that device.

        Args:
            stored: (B, ...) as read.
            random: numbers per row, where a sample is drawn from stored moments; None: the mean.
        """
        return stored

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """One gather: x (B, C, H, W) float32 and y (B,) int64; no random numbers are drawn."""
        stored, y = self.read(indices)
        return self.prepare(stored), y

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample: x (C, H, W) float32 and y () int64."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} samples of {self.name}")
        x, y = self.__getitems__([index % len(self)])
        return x[0], y[0]

    def pixels(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in the network's space to images (B, channels, height, width), float, about
        in [-1, 1], with gradient.
        """
        return x if self.codec is None else self.codec.pixels(x)

    def decode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float in the network's space to (B, channels, height, width) uint8."""
        return to_uint8(x) if self.codec is None else self.codec.decode(x)

    def samples(self) -> str:
        """Which samples these are, in words that change when the set does."""
        return f"{len(self):,} samples"

    def describe(self) -> str:
        """One line for the log: name, size, shape, classes."""
        shape = "x".join(str(size) for size in self.shape)
        mirrored = ", half of them shown mirrored (data.flips)" if self.mirrored else ""
        return (
            f"{self.name}: {len(self):,} samples of {shape}, {self.num_classes} classes{mirrored}"
        )


def other_classes(theirs: Dataset, mine: Dataset) -> str:
    """In which classes two data sets differ, in words; empty where they do not, as far as known."""
    if theirs.num_classes != mine.num_classes:
        there, here = (
            f"{side.num_classes} classes"
            + (f" ({', '.join(side.class_names[:4])}, ...)" if side.class_names else "")
            for side in (theirs, mine)
        )
        return f"{there}, and {mine.name} has {here}"
    pairs = enumerate(zip(theirs.class_names, mine.class_names, strict=False))
    differ = [f"{k} is {a!r} there and {b!r} in {mine.name}" for k, (a, b) in pairs if a != b]
    return f"class {', '.join(differ[:4])}" if differ else ""


@dataclass(frozen=True)
class DataConfig(ABC):
    """Names a data set; ``open()`` reads it."""

    def __post_init__(self) -> None:
        check_values(self, "data")

    @abstractmethod
    def open(self) -> Dataset:
        """Read the data, or raise ValueError with the remedy."""

    def held_out(self) -> "DataConfig | None":
        """Real data of the same kind that training does not see, where there are any."""
        return None
