"""Pools of candidates: real images, samples of a run, or one after the other.

Real images are held in memory as uint8.  Samples are made when they are asked for: candidate k of
class c is sample c + C k of its run, whatever was asked for before.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucgm.data import Digits, Images
from ucgm.data.dataset import Dataset, flips_fit
from ucgm.data.pixels import decode_image
from ucgm.data.sources.listing import open_source
from ucgm.evaluation.image_sets import NpzImages
from ucgm.generation.samples import SampleSet
from ucgm.runs.config import read_config


@dataclass(frozen=True, eq=False)
class RealImages:
    """Labelled images in memory: pixels (N, C, H, W) uint8 and labels (N,)."""

    name: str
    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what has no classes to teach."""
        if len(self.class_names) < 2:
            raise ValueError(
                f"{self.name} has {len(self.class_names)} classes: condensation needs labelled "
                "images of two classes or more, such as a folder of class folders"
            )
        missing = set(range(len(self.class_names))) - set(self.labels.tolist())
        if missing:
            raise ValueError(
                f"{self.name} has no image of class {self.class_names[min(missing)]}: add some"
            )
        for k, name in enumerate(self.class_names):
            if name[:1] in ("", ".") or {"/", "\\"} & set(name) or name in self.class_names[:k]:
                raise ValueError(
                    f"class {name!r} of {self.name} cannot be the name of a folder of its own: "
                    "rename it"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @property
    def mirrored(self) -> bool:
        """Whether a mirrored image is of the same class."""
        return flips_fit(self.class_names)

    def of(self, rows: Tensor) -> "RealImages":
        """Those of ``rows`` (n,), indices or a mask."""
        return RealImages(self.name, self.pixels[rows], self.labels[rows], self.class_names)


def images_of(data: Dataset) -> RealImages:
    """All images of a data set of pixels."""
    if not data.lossless:
        raise ValueError(f"{data.name} holds latents: name a set of images with --data")
    parts = [data.__getitems__(rows) for rows in torch.arange(len(data)).split(1000)]
    pixels = torch.cat([data.decode(x) for x, _ in parts])
    names = data.class_names or tuple(f"{k:04d}" for k in range(data.num_classes))
    return RealImages(data.name, pixels, torch.cat([y for _, y in parts]), names)


def open_sets(
    where: str, size: int | None = None, held_out: str | None = None
) -> tuple[RealImages, RealImages]:
    """Images to condense, and others of the same classes to test on.

    Args:
        where: as in :func:`open_real`, or a run, for what it was trained on.
        size: side of the images.
        held_out: the others; those that the data set has, or every fifth of a class, when None.

    Raises:
        ValueError: the two have other classes.
    """
    run, config = Path(where) / "config.yaml", None
    if run.is_file():
        config = read_config(run).data
    elif where == "digits":
        config = Digits()
    found = open_real(where, size) if config is None else images_of(config.open())
    own = None if config is None else config.held_out()
    if held_out is not None:
        test = open_real(held_out, found.shape[1], found.shape[0])
    elif own is not None:
        test = images_of(own.open())
    else:
        tested = torch.zeros(len(found.labels), dtype=torch.bool)
        for label, name in enumerate(found.class_names):
            rows = torch.nonzero(found.labels == label)[:, 0]
            if len(rows) < 5:
                raise ValueError(
                    f"{found.name} has {len(rows)} images of class {name} and every fifth is kept "
                    "for the test: add some, or name other images to test on with --held-out"
                )
            tested[rows[4::5]] = True
        return found.of(~tested), found.of(tested)
    if test.class_names != found.class_names:
        raise ValueError(
            f"{test.name} has the classes {', '.join(test.class_names[:4])}, ... and {found.name} "
            f"{', '.join(found.class_names[:4])}, ...: a set is tested on its own classes"
        )
    return found, test


def open_real(where: str, size: int | None = None, channels: int | None = None) -> RealImages:
    """Images of ``digits``, ``digits-test``, an npz, or class folders as files, a zip or the Hub.

    Args:
        where: the set.
        size: side after scaling and cropping; that of the first file when None.
        channels: 1 or 3; what fits the files when None.

    Raises:
        ValueError: nothing there, or no labelled images.
    """
    if where == "digits" or where.startswith("digits-"):
        return images_of(Digits(split=where.partition("-")[2] or "train").open())  # pyright: ignore
    if where.endswith(".npz"):
        found = NpzImages(Path(where))
        if found.labels is None:
            raise ValueError(f"{where} has no labels under arr_1: condensation needs classes")
        pixels = torch.cat([found.images(i) for i in torch.arange(len(found)).split(1000)])
        names = tuple(f"{k:04d}" for k in range(int(found.labels.max()) + 1))
        return RealImages(Path(where).stem, pixels, found.labels, names)
    if size is None:
        size = min(decode_image(open_source(where).content_of(0)).size)
    data = Images(path=where, size=size, channels=1 if channels == 1 else 3).open()
    if channels is None and data.channels_that_fit() == 1:
        data = Images(path=where, size=size, channels=1).open()
    return images_of(data)


class Pool(ABC):
    """Candidates by class and number."""

    @abstractmethod
    def candidates(self, label: int, start: int, count: int) -> tuple[Tensor, list[str]]:
        """Images (n, C, H, W) uint8 of a class, ``start`` to ``start + count`` or as many as there
        are, and what each is called.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What it is, as JSON."""


class RealPool(Pool):
    """Real images of a class in an order that a seed decides."""

    def __init__(self, images: RealImages, seed: int) -> None:
        self.images, self.seed = images, seed
        generator = torch.Generator().manual_seed(seed)
        self.rows = []
        for label in range(len(images.class_names)):
            rows = torch.nonzero(images.labels == label)[:, 0]
            self.rows.append(rows[torch.randperm(len(rows), generator=generator)])

    def candidates(self, label: int, start: int, count: int) -> tuple[Tensor, list[str]]:
        """Images (n, C, H, W) uint8 of the set."""
        rows = self.rows[label][start : start + count]
        return self.numbered(rows), [f"{self.images.name}:{row}" for row in rows.tolist()]

    def numbered(self, numbers: Tensor) -> Tensor:
        """Images (n, C, H, W) uint8 of the numbers (n,) in the names of candidates."""
        return self.images.pixels[numbers]

    def identity(self) -> dict[str, Any]:
        """Name and number."""
        return {"real": self.images.name, "images": len(self.images.labels)}


class GeneratedPool(Pool):
    """Samples of a run.

    Args:
        samples: with balanced labels of all classes.
        protocol: what decides their pixels.
    """

    def __init__(self, samples: SampleSet, protocol: dict[str, Any]) -> None:
        self.samples, self.protocol = samples, protocol

    def candidates(self, label: int, start: int, count: int) -> tuple[Tensor, list[str]]:
        """Samples (n, C, H, W) uint8, of which there is no end."""
        numbers = label + self.samples.data.num_classes * torch.arange(start, start + count)
        return self.numbered(numbers), [f"sample:{n}" for n in numbers.tolist()]

    def numbered(self, numbers: Tensor) -> Tensor:
        """Samples (n, C, H, W) uint8 of the numbers (n,) in the names of candidates."""
        return self.samples.images(numbers, numbers // self.samples.data.num_classes)

    def identity(self) -> dict[str, Any]:
        """The protocol of the samples."""
        return {"generated": self.protocol}


class Chained(Pool):
    """Candidates of several pools in turn: number k is k // n of pool k % n."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.pools = pools

    def candidates(self, label: int, start: int, count: int) -> tuple[Tensor, list[str]]:
        """Images (n, C, H, W) uint8, as many of each pool, less where one has no more."""
        n = len(self.pools)
        images, names = [], []
        for i, pool in enumerate(self.pools):
            first, last = (-(-(k - i) // n) for k in (start, start + count))
            found, called = pool.candidates(label, first, last - first)
            images.append(found)
            names += called
        return torch.cat(images), names

    def identity(self) -> dict[str, Any]:
        """Those of its pools."""
        return {"chained": [pool.identity() for pool in self.pools]}
