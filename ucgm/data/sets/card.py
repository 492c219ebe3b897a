"""What a run remembers of its data: enough to sample without them, and to refuse others.

    RUN/data.json    name, shape, classes, codec

A model trained on latents needs their codec for ever and their shards only for training.  The run
keeps a card of both: training that continues on a folder which was encoded anew is refused with
both codecs named, and sampling on a machine without the shards decodes by the card.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from ucgm.data.dataset import DataConfig, Dataset
from ucgm.data.latents.codec import Codec
from ucgm.runtime.files import write_atomic

CARD_FILE = "data.json"


class CardDataset(Dataset):
    """A data set of which only the card is here: it decodes and describes, and has no samples."""

    def __init__(self, run_dir: Path, card: dict[str, Any], place: str | None) -> None:
        self.name = card["name"]
        self.shape = tuple(card["shape"])
        self.num_classes = card["num_classes"]
        self.class_names = tuple(card["class_names"])
        self.extractor = card["extractor"]
        self.codec = Codec.from_dict(card["codec"], str(run_dir / CARD_FILE), place)

    def __len__(self) -> int:
        """Zero."""
        return 0

    def __getitems__(self, indices: Sequence[int] | Tensor) -> NoReturn:
        """There is nothing to read."""
        raise ValueError(f"the samples of {self.name} are not on this machine: set data.path.")

    def decode(self, x: Tensor) -> Tensor:
        """(B, C, h, w) float in the network's space to (B, 3, H, W) uint8."""
        assert self.codec is not None
        return self.codec.decode(x)


def card_of(dataset: Dataset) -> dict[str, Any]:
    """JSON values: what sampling and continuing need to know."""
    return {
        "name": dataset.name,
        "shape": list(dataset.shape),
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "extractor": dataset.extractor,
        "codec": None if dataset.codec is None else dataset.codec.to_dict(),
    }


def keep_card(dataset: Dataset, run_dir: str | Path) -> None:
    """Write the card of ``dataset`` into a run folder, or compare it with the one there.

    Raises:
        ValueError: the run was trained on other data; both are named.
    """
    path = Path(run_dir) / CARD_FILE
    if path.exists():
        check_card(dataset, run_dir)
        return
    text = json.dumps(card_of(dataset), indent=1) + "\n"
    write_atomic(path, lambda p: p.write_text(text))


def check_card(dataset: Dataset, run_dir: str | Path) -> None:
    """Refuse ``dataset`` unless it is what the run in ``run_dir`` was trained on.

    Raises:
        ValueError: naming both sides and what differs.
    """
    path = Path(run_dir) / CARD_FILE
    card = _read(path)
    if (card["codec"] is None) != (dataset.codec is None):
        sides = ["latents" if side else "pixels" for side in (card["codec"], dataset.codec)]
        raise ValueError(
            f"{run_dir} was trained on {sides[0]}, and {dataset.name} holds {sides[1]}."
        )
    if dataset.codec is not None:
        theirs = Codec.from_dict(card["codec"], str(path))
        theirs.check(dataset.codec, f"the run {run_dir}", f"the data set {dataset.name}")
    for key in ("shape", "num_classes"):
        mine = card_of(dataset)[key]
        if card[key] != mine:
            raise ValueError(
                f"the run {run_dir} was trained on {card['name']} with {key} {card[key]}, and "
                f"{dataset.name} has {mine}."
            )


def open_for_sampling(config: DataConfig, run_dir: str | Path) -> Dataset:
    """The data set of a run, or what its card says when the files are not on this machine.

    Raises:
        ValueError: the files are here and are not what the run was trained on.
    """
    path, place = Path(run_dir) / CARD_FILE, getattr(config, "path", None)
    if not path.exists():
        return config.open()
    if place is None or Path(place).exists():
        dataset = config.open()
        check_card(dataset, run_dir)
        return dataset
    card = _read(path)
    if card["codec"] is None:
        return config.open()
    return CardDataset(Path(run_dir), card, getattr(config, "vae_path", None))


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
