"""Images read while training: class folders or a zip, for sets that are small or change.

Nothing is prepared: every visit decodes and crops a file (a core does a few hundred a second), so
a large set is faster as shards: ``ucgm encode SOURCE --vae identity --size 64 --out DIR`` for
pixels, with an autoencoder for latents.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ucgm.data.dataset import DataConfig, Dataset, flips_fit, other_classes
from ucgm.data.pixels import UnreadableImage, from_uint8, read_image
from ucgm.data.sources.listing import open_source
from ucgm.runtime.randomness import RowRandom
from ucgm.runtime.values import Side


class ImageDataset(Dataset):
    """Image files as pixels in [-1, 1]."""

    lossless = True

    def __init__(self, config: "Images") -> None:
        self.source = source = open_source(config.path)
        if source.content != "images":
            raise ValueError(
                f"{source.where} holds {source.content}: make a data set with `ucgm encode`."
            )
        self.name = Path(source.where).name
        self.shape = (config.channels, config.size, config.size)
        self.class_names = source.classes
        self.num_classes = source.count_classes()
        self.mirrored = flips_fit(source.classes) if config.flips is None else config.flips

    def __len__(self) -> int:
        """Number of files."""
        return len(self.source)

    def read(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Decoded crops (B, C, H, W) uint8 and labels (B,).

        Raises:
            ValueError: naming a file that cannot be read.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        items, channels, size = wanted % len(self), self.shape[0], self.shape[1]
        images = np.empty((len(items), channels, size, size), dtype=np.uint8)
        for slot, item in enumerate(items.tolist()):
            try:
                images[slot] = read_image(self.source.content_of(item), size, channels)
            except (UnreadableImage, OSError) as error:
                # What the system does not let read may be whole.
                remedy = "" if isinstance(error, OSError) else ": delete it, or save it anew"
                raise ValueError(
                    f"{self.source.place(item)} cannot be read ({error}){remedy}. `ucgm data` "
                    "lists all such files."
                ) from error
        stored, flipped = torch.from_numpy(images), torch.from_numpy(wanted >= len(self))
        stored[flipped] = stored[flipped].flip(-1)
        return stored, torch.from_numpy(self.source.labels[items])

    def samples(self) -> str:
        """Their number, and a digest of names and labels."""
        return f"{super().samples()} (names and labels {self.source.names_digest()[:12]})"

    def prepare(self, stored: Tensor, random: RowRandom | None = None) -> Tensor:
        """(B, C, H, W) uint8 to float32 in [-1, 1]."""
        return from_uint8(stored)

    def coloured(self, looks: int = 16) -> list[bool]:
        """Whether images have colours, of ``looks`` spread over the set that can be read."""
        spread = []
        for item in np.linspace(0, len(self) - 1, min(looks, len(self))).astype(int):
            with contextlib.suppress(UnreadableImage, OSError):
                spread.append(np.ptp(read_image(self.source.content_of(item), 8), axis=0).max())
        return [bool(width > 2) for width in spread]  # JPEG rounds

    def flat_share(self, looks: int = 64) -> float:
        """Mean share of an image that has its most frequent grey value, or one within 2 of it.

        About 0.1 of photographs and 0.8 of drawings and writing; 0 where no image can be read.
        """
        shares = []
        for item in np.linspace(0, len(self) - 1, min(looks, len(self))).astype(int):
            with contextlib.suppress(UnreadableImage, OSError):
                image = read_image(self.source.content_of(item), self.shape[-1])
                counts = np.bincount(image.mean(0).astype(int).ravel(), minlength=256)
                shares.append(np.convolve(counts, np.ones(5)).max() / counts.sum())
        return float(np.mean(shares)) if shares else 0.0

    def channels_that_fit(self) -> Literal[1, 3]:
        """1 where images were looked at and all were grey, otherwise 3."""
        found = self.coloured(64)
        return 1 if found and not any(found) else 3

    def describe(self) -> str:
        """Lines for the log; what was left out, and whether the images are as grey as they look."""
        lines = [super().describe(), *([self.source.note] if self.source.note else [])]
        found = self.coloured()
        if found and not any(found) and self.shape[0] == 3:
            count = f"{len(found)} of {len(found)}"
            lines.append(f"{count} images looked at are grey: data.channels 1 would do")
        if any(found) and self.shape[0] == 1:
            lines.append(f"{sum(found)} of {len(found)} images looked at have colours")
        return "\n  ".join(lines)


@dataclass(frozen=True)
class Images(DataConfig):
    """A folder of class folders, or a zip: pixels in [-1, 1], read while training."""

    path: str
    """class folders, a flat folder (no classes), or a zip."""
    size: Side = 64
    """side of the square in pixels; the crop is that of ADM."""
    channels: Literal[1, 3] = 3
    """3 for RGB, 1 for grey; `ucgm train` takes 1 where the images it looks at are grey."""
    flips: bool | None = None
    """show half of the samples mirrored; null: unless every class is named by one letter or digit,
    which a flip would change."""
    held_out_path: str | None = None
    """real images of the same classes that training does not see."""

    def open(self) -> ImageDataset:
        """List the files; they are read when asked for."""
        dataset, held_out = ImageDataset(self), self.held_out()
        if held_out is not None and (other := other_classes(dataset, held_out.open())):
            raise ValueError(f"data.held_out_path: {other}, which training does not know.")
        return dataset

    def held_out(self) -> "Images | None":
        """The held-out images, in the same size."""
        if self.held_out_path is None:
            return None
        return Images(self.held_out_path, self.size, self.channels, False)
