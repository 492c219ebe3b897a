"""Data sets without samples: shape, classes and codec, as a checkpoint or a run declares them.

A public checkpoint arrives without the data it was trained on; its run declares them:

    data: {class_path: ucgm.data.DataSpec, init_args: {shape: [4, 32, 32], num_classes: 1000, ...}}

A run that was trained here keeps the same of its data in ``RUN/data.json``, its *card*: a model of
latents needs their codec for ever and their shards only for training.  Both are enough to sample
and decode, and to refuse other data, with both sides named.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

from torch import Tensor

from ucgm.data.dataset import DataConfig, Dataset, other_classes
from ucgm.data.labels import MOST_CLASSES
from ucgm.data.latents.codec import Codec
from ucgm.runtime.files import write_atomic
from ucgm.runtime.reading import read_json
from ucgm.runtime.values import Range, Side

CARD_FILE = "data.json"
_CARD = {"name": str, "shape": [int], "num_classes": int, "class_names": [str]}


class DataSpecDataset(Dataset):
    """A set without samples: it decodes and describes."""

    def __init__(self, spec: "DataSpec") -> None:
        self.name, self.shape = spec.name, spec.shape
        self.num_classes, self.class_names = spec.num_classes, spec.class_names
        self.codec = spec.codec
        if spec.codec is not None and spec.vae_path is not None:
            self.codec = replace(spec.codec, place=spec.vae_path)
        self.decodes = spec.pixels or spec.codec is not None

    def __len__(self) -> int:
        """Zero."""
        return 0

    def read(self, indices: Sequence[int] | Tensor) -> NoReturn:
        """There is nothing to read."""
        raise ValueError(
            f"the samples of {self.name} are not on this machine: set data.path, or data to a set "
            "that has samples."
        )

    def decode(self, x: Tensor) -> Tensor:
        """(B, C, h, w) float in the network's space to (B, 3, H, W) uint8."""
        if not self.decodes:
            raise ValueError(
                f"the autoencoder of {self.name} or its scaling is not known: import it again "
                "with --vae and --stats, or write latents with `ucgm sample --format latents`."
            )
        return super().decode(x)

    def describe(self) -> str:
        """Two lines for the log."""
        without = "pixels" if self.decodes else "unknown codec"
        return f"{super().describe()}\n  {self.codec.describe() if self.codec else without}"


@dataclass(frozen=True)
class DataSpec(DataConfig):
    """Data that are not here; a training needs others in their place."""

    shape: tuple[Side, Side, Side]
    """(C, H, W) of what the network sees."""
    num_classes: Annotated[int, Range(0, MOST_CLASSES)] = 0
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
        """Refuse a codec of other latents, and names of other classes."""
        super().__post_init__()
        if self.codec is not None and tuple(self.codec.shape) != tuple(self.shape):
            raise ValueError(
                f"data.codec is of latents {tuple(self.codec.shape)} and data.shape is "
                f"{tuple(self.shape)}: they do not belong together."
            )
        if len(self.class_names) not in (0, self.num_classes):
            raise ValueError(
                f"data has {len(self.class_names)} class_names for {self.num_classes} classes."
            )

    def open(self) -> DataSpecDataset:
        """The set without samples."""
        return DataSpecDataset(self)


def keep_card(dataset: Dataset, run_dir: str | Path) -> None:
    """Write the card of ``dataset`` into a run folder, or compare it with the one there.

    Raises:
        ValueError: the run was trained on other data, or on fewer or more of them; both are named.
    """
    path = Path(run_dir) / CARD_FILE
    if path.exists():
        there, mine = check_card(dataset, run_dir), dataset.samples()
        if there not in (None, mine):
            raise ValueError(
                f"the run {run_dir} was trained on {there}, and {dataset.name} has {mine} now: go "
                f"back to those, or train on from it with --train.init {run_dir} and a new "
                "--run-dir."
            )
        return
    card = {
        "name": dataset.name,
        "samples": dataset.samples(),
        "shape": list(dataset.shape),
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "extractor": dataset.extractor,
        "own_decoder": type(dataset).decode is not Dataset.decode,
        "codec": None if dataset.codec is None else dataset.codec.to_dict(),
    }
    write_atomic(path, json.dumps(card, indent=1) + "\n")


def check_card(dataset: Dataset, run_dir: str | Path) -> str | None:
    """Refuse ``dataset`` unless it is of the kind that the run in ``run_dir`` was trained on.

    Returns:
        which samples those were; None where an earlier version did not say.

    Raises:
        ValueError: naming both sides and what differs.
    """
    there, card = _read_card(run_dir)
    if (there.codec is None) != (dataset.codec is None):
        sides = ["latents" if side else "pixels" for side in (there.codec, dataset.codec)]
        raise ValueError(
            f"{run_dir} was trained on {sides[0]}, and {dataset.name} holds {sides[1]}."
        )
    if there.codec is not None and dataset.codec is not None:
        there.codec.check(dataset.codec, f"the run {run_dir}", f"the data set {dataset.name}")
    if there.shape != dataset.shape:
        raise ValueError(
            f"the run {run_dir} was trained on {there.name} with shape {there.shape}, and "
            f"{dataset.name} has {dataset.shape}."
        )
    if other := other_classes(there, dataset):
        raise ValueError(f"the run {run_dir} was trained on other classes: {other}.")
    return card.get("samples")


def open_for_sampling(config: DataConfig, run_dir: str | Path) -> Dataset:
    """The data set of a run, or what its card says when the files are not here any more.

    Raises:
        ValueError: no data set, and no card or one of a set that decodes by code of its own.
    """
    if not (Path(run_dir) / CARD_FILE).exists():
        return config.open()
    declared, card = _read_card(run_dir, getattr(config, "vae_path", None))
    try:
        dataset = config.open()
        check_card(dataset, run_dir)
        return dataset
    except (OSError, ValueError) as error:
        if card.get("own_decoder"):
            raise
        place = getattr(config, "path", None)
        if place is not None and Path(place).exists():
            warnings.warn(f"{error} Its own {CARD_FILE} is used.", stacklevel=2)
        return declared


def _read_card(
    run_dir: str | Path, vae_path: str | None = None
) -> tuple[DataSpecDataset, dict[str, Any]]:
    """The set that the card of a run declares, and the card; one of pixels has no codec."""
    path = Path(run_dir) / CARD_FILE
    card = read_json(path, _CARD)
    try:
        codec = card["codec"] and Codec.from_dict(card["codec"], str(path))
        facts = {key: card[key] for key in _CARD}
        spec = DataSpec(**facts, pixels=codec is None, codec=codec, vae_path=vae_path)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    declared = spec.open()
    declared.extractor = str(card.get("extractor", declared.extractor))
    return declared, card
