"""Data of which only the form is known: shape, classes, codec, and no samples.

A public checkpoint arrives without the data it was trained on.  This is what its run says in the
place of a data set: enough to sample and decode, to tune on the same data when they are there, and
to refuse others.

    data: {class_path: ucgm.data.DataSpec, init_args: {shape: [4, 32, 32], num_classes: 1000, ...}}
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from torch import Tensor

from ucgm.data.dataset import DataConfig, Dataset
from ucgm.data.latents.codec import Codec
from ucgm.data.pixels import to_uint8


class DataSpecDataset(Dataset):
    """A set without samples: it decodes and describes."""

    def __init__(self, declared: "DataSpec") -> None:
        self.name = declared.name
        self.shape = declared.shape
        self.num_classes = declared.num_classes
        self.class_names = declared.class_names
        self.codec = declared.codec
        if declared.codec is not None and declared.vae_path is not None:
            self.codec = replace(declared.codec, place=declared.vae_path)
        self.pixels = declared.pixels
        self.decodes = self.pixels or self.codec is not None

    def __len__(self) -> int:
        """Zero."""
        return 0

    def __getitems__(self, indices: Sequence[int] | Tensor) -> NoReturn:
        """There is nothing to read."""
        raise ValueError(f"{self.name} has no samples here: set data to a set that has.")

    def decode(self, x: Tensor) -> Tensor:
        """(B, C, h, w) float in the network's space to (B, 3, H, W) uint8."""
        if self.pixels:
            return to_uint8(x)
        if self.codec is None:
            raise ValueError(
                f"the autoencoder of {self.name} or its scaling is not known: import it again "
                "with --vae and --stats, or write latents with `ucgm sample --format latents`."
            )
        try:
            return self.codec.decode(x)
        except ValueError as error:
            raise ValueError(
                f"{error} (In config.yaml of the run; or import again with --vae, or write latents "
                "with `ucgm sample --format latents`.)"
            ) from error

    def describe(self) -> str:
        """Two lines for the log."""
        codec = "pixels" if self.pixels else "unknown codec"
        return f"{super().describe()}\n  {self.codec.describe() if self.codec else codec}"


@dataclass(frozen=True)
class DataSpec(DataConfig):
    """Data that are not here; a training needs others in their place."""

    shape: tuple[int, int, int]
    """(C, H, W) of what the network sees."""
    num_classes: int = 0
    """classes; 0: none."""
    name: str = "declared"
    """for reports."""
    class_names: tuple[str, ...] = ()
    """one name per class, or none."""
    pixels: bool = False
    """the network sees pixels, and there is no codec."""
    codec: Codec | None = None
    """between images and latents; null: not known, so latents cannot be decoded."""
    vae_path: str | None = None
    """where the autoencoder is on this machine, when not where the codec says."""

    def __post_init__(self) -> None:
        """Refuse a codec of other latents."""
        if self.codec is not None and tuple(self.codec.shape) != tuple(self.shape):
            raise ValueError(
                f"data.codec is of latents {tuple(self.codec.shape)} and data.shape is "
                f"{tuple(self.shape)}: they do not belong together."
            )

    def open(self) -> DataSpecDataset:
        """The set without samples."""
        return DataSpecDataset(self)
