"""What a feature extractor is, and the table of those that have a name.

An extractor maps uint8 images to named rows:

    features  (B, d)  FID, KID, SW, precision and recall are computed from these
    logits    (B, K)  inception score; conditional accuracy when the K classes are those of the data
    spatial   (B, e)  sFID

Some have features of places too, (B, D, g, g) of a grid of their own: what representation
alignment follows.

It runs in float32 with autocast and TF32 off, in evaluation mode, and is known by its name and by
the hash of its weights: two numbers compare only when both agree.
"""

import importlib
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ucgm.runtime.fixed_batches import by_tiles, tiles
from ucgm.runtime.precision import exact_float32

WEIGHTS_OPTION = "--extractor-weights"


@dataclass(frozen=True, eq=False)
class Extractor:
    """A feature network with its identity.

    Attributes:
        name: as registered, for example ``digits`` or ``inception``.
        digest: sha256 of the weights.
        module: maps (B, channels, H, W) uint8 to a dict with ``features`` and optionally
            ``logits`` and ``spatial``, all float32 of B rows.
        dimensions: width of each of these outputs.
        channels: colour channels of the images it takes.
        num_classes: classes the logits stand for when they are those of the data, else 0.
        note: one line for the report, for example the accuracy of a classifier.
        batch_size: images per call of the module, always as many, see
            :mod:`ucgm.runtime.fixed_batches`.
        spec: what :func:`open_extractor` opens it by, which it sets.
    """

    name: str
    digest: str
    module: nn.Module
    dimensions: dict[str, int]
    channels: int
    num_classes: int = 0
    note: str = ""
    batch_size: int = 64
    spec: str = ""

    def identity(self) -> dict[str, str]:
        """Name, weights hash and note, for the report."""
        return {"name": self.name, "sha256": self.digest, "note": self.note}

    def __call__(self, images: Tensor, indices: Tensor | None = None) -> dict[str, Tensor]:
        """Outputs for (N, channels, H, W) uint8, on the CPU; grey becomes colour by repetition.

        Args:
            images: any number of them.
            indices: (N,) numbers of the images, on which alone the rounding of their features then
                depends; 0 .. N - 1 when left out.

        Raises:
            ValueError: for other dtypes or channel counts, or when a feature is not finite.
        """
        images, device = self._accepted(images), self._device()
        outputs = {name: torch.empty(len(images), d) for name, d in self.dimensions.items()}
        filler = images.new_zeros(self.batch_size, *images.shape[1:])
        places = torch.arange(len(images)) if indices is None else indices
        with torch.no_grad(), exact_float32(device):
            for tile in tiles(places, self.batch_size):
                found = self._outputs(tile.fill(filler, images).to(device))
                for name, rows in outputs.items():
                    rows[tile.rows] = found[name].float().cpu()[tile.slots]
        for name, rows in outputs.items():
            if not torch.isfinite(rows).all():
                raise ValueError(
                    f"extractor {self.name} gave {name} that are not finite: its weights are "
                    "damaged or not those it was built for. Give another weights file."
                )
        return outputs

    def maps(self, images: Tensor) -> Tensor:
        """Features of places, (N, D, g, g), of images (N, channels, H, W) uint8, on the CPU.

        Raises:
            ValueError: for an extractor without such features, and as when called.
        """
        make = getattr(self.module, "maps", None)
        if make is None:
            raise ValueError(
                f"extractor {self.name} has no features of places: its module needs a method "
                "maps(images) that gives (B, D, g, g). Choose another, such as dinov2 or digits."
            )
        images, device = self._accepted(images), self._device()
        size = min(self.batch_size, len(images))
        filler = images.new_zeros(size, *images.shape[1:])
        with torch.no_grad(), exact_float32(device):
            return by_tiles(
                torch.arange(len(images)),
                size,
                lambda tile: make(tile.fill(filler, images).to(device)).float().cpu(),
            )

    def _accepted(self, images: Tensor) -> Tensor:
        """The images (N, channels, H, W) if the network takes them; grey becomes colour."""
        if images.ndim == 4 and images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"extractor {self.name} takes (N, {self.channels}, H, W) uint8 images, got "
                f"{tuple(images.shape)} {images.dtype}. Choose another extractor for these images."
            )
        return images

    def _device(self) -> torch.device:
        held = itertools.chain(self.module.parameters(), self.module.buffers())
        return next((value.device for value in held), torch.device("cpu"))

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        """What the module gives, refused unless it is what was announced; some would broadcast."""
        try:
            found = self.module(images)
            shapes: Any = {name: tuple(rows.shape) for name, rows in found.items()}
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"extractor {self.name} failed on images {tuple(images.shape)}: {reason_of(error)}."
            ) from error
        for name, width in self.dimensions.items():
            if shapes.get(name) != (self.batch_size, width):
                raise ValueError(
                    f"extractor {self.name} announces {name} of width {width}, and its module "
                    f"gives {shapes} for {self.batch_size} images: correct its dimensions."
                )
        return found


class Extractors:
    """Several extractors that see the same images, as if they were one.

    Each of several is on its device for the time of its call: they take the memory of the largest.

    Args:
        parts: prefix of the names of its outputs -> extractor, for example ``dinov2.``.
        device: where they run; None: where they are.
    """

    def __init__(
        self, parts: dict[str, Extractor], device: torch.device | str | None = None
    ) -> None:
        self.parts, self.device = parts, device
        self.dimensions = {
            prefix + name: width
            for prefix, extractor in parts.items()
            for name, width in extractor.dimensions.items()
        }
        self.batch_size = math.lcm(*(extractor.batch_size for extractor in parts.values()))

    def __call__(self, images: Tensor, indices: Tensor | None = None) -> dict[str, Tensor]:
        """The outputs (B, ...) of all for images (B, C, H, W), see :meth:`Extractor.__call__`."""
        found = {}
        for prefix, extractor in self.parts.items():
            if self.device is not None:
                extractor.module.to(self.device)
            found |= {prefix + name: rows for name, rows in extractor(images, indices).items()}
            if self.device is not None and len(self.parts) > 1:
                extractor.module.to("cpu")
        return found


Build = Callable[[str | None], Extractor]
_REGISTRY: dict[str, Build] = {}


def register_extractor(name: str, build: Build) -> None:
    """Give an extractor a name; ``build`` takes the path of its weights (None: its default).

    Raises:
        ValueError: when the name is taken by another builder.
    """
    if _REGISTRY.get(name, build) is not build:
        raise ValueError(f"an extractor named {name} exists: choose another name.")
    _REGISTRY[name] = build


def open_extractor(
    name: str,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    option: str = WEIGHTS_OPTION,
) -> Extractor:
    """The extractor registered as ``name``, on ``device``.

    Your own is ``module:function``, imported from the current folder too; ``function(weights)``
    returns an :class:`Extractor` (docs/benchmark.md has an example).

    Args:
        name: ``digits``, ``random``, ``inception``, ``dinov2``, one of
            :mod:`ucgm.evaluation.extractors.vision`, a name given to :func:`register_extractor`, or
            ``module:function``.
        weights: path of its weights; None for those it ships with or downloads.
        device: where it runs.
        option: how weights are named where the extractor is asked for; it stands in messages.

    Raises:
        ValueError: for an unknown name, when the weights are missing or of another network, and for
            whatever goes wrong in a function of your own.
    """
    if ":" in name and name not in _REGISTRY:
        module, _, function = name.partition(":")
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            build = getattr(importlib.import_module(module), function)
        except Exception as error:
            raise ValueError(f"extractor {name} cannot be imported: {reason_of(error)}.") from error
        register_extractor(name, build)
    if name not in _REGISTRY:  # those that ship with ucgm register themselves
        importlib.import_module("ucgm.evaluation.extractors")
    if name not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise ValueError(
            f"unknown extractor {name!r}: choose one of {known}, or your own as module:function."
        )
    try:
        extractor = _REGISTRY[name](weights)
    except Exception as error:
        if not isinstance(error, ValueError) or ":" in name:
            raise ValueError(f"extractor {name} cannot be built: {reason_of(error)}.") from error
        if option == WEIGHTS_OPTION:
            raise
        raise ValueError(str(error).replace(WEIGHTS_OPTION, option)) from error
    if not isinstance(extractor, Extractor):
        kind = type(extractor).__name__
        raise ValueError(f"{name} must return a ucgm.evaluation.extractors.Extractor, not {kind}.")
    extractor.module.to(device).eval().requires_grad_(False)
    return replace(extractor, spec=name)


def reason_of(error: Exception) -> str:
    """Kind and first line of an error."""
    return " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]]).rstrip(".")
