"""Latents in shards: the data set that ``ucgm encode`` makes and large trainings read.

    DIR/codec.json       what the latents mean (:mod:`ucgm.data.latents.codec`)
    DIR/manifest.json    classes, and per shard its rows, bytes and SHA-256; what was skipped
    DIR/*.safetensors    the rows (:mod:`ucgm.data.latents.shards`)

A batch leaves the disk as it is stored, half as large as float32, and is normalised on the device.
Opening reads two JSON files and one header per shard, and compares sizes with the manifest; the
checksums are compared by ``ucgm data DIR``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ucgm.data.dataset import DataConfig, Dataset
from ucgm.data.latents.codec import Codec, CodecSettings
from ucgm.data.latents.shards import ShardSet
from ucgm.data.pixels import from_uint8
from ucgm.runtime.randomness import RowRandom

MANIFEST_FILE = "manifest.json"


class LatentDataset(Dataset):
    """Rows of shards as normalised latents (or as pixels, with the identity codec).

    Args:
        folder: made by ``ucgm encode``.
        place: where the autoencoder is, when not where the codec says.
        mirrored: use flips, where the set can give them.
    """

    codec: Codec  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, folder: Path, place: str | None = None, mirrored: bool = True) -> None:
        manifest = read_manifest(folder)
        self.codec = codec = Codec.load(folder, place)
        self.name = folder.name
        self.shape = codec.shape
        self.num_classes = int(manifest["num_classes"])
        self.class_names = tuple(manifest["classes"])
        self.lossless = codec.kind == "identity"
        self.sampled = codec.store == "moments"
        self.rows = ShardSet(shard_paths(folder, manifest), self.num_classes)
        if self.rows.row_shape != codec.stored_shape:
            raise ValueError(
                f"the shards of {folder} hold {self.rows.row_shape} per row and its codec "
                f"{codec.describe()} stores {codec.stored_shape}: they do not belong together."
            )
        self.mirrored = mirrored and (self.rows.flips or self.lossless)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def read(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Stored rows (B, ...) and labels (B,); index n + i is row i flipped."""
        wanted = np.asarray(indices, dtype=np.int64)
        flipped = wanted >= len(self)
        stored, y = self.rows.gather(wanted % len(self), flipped & self.rows.flips)
        if self.lossless and flipped.any():
            which = torch.from_numpy(flipped)
            stored[which] = stored[which].flip(-1)
        return stored, y

    def prepare(self, stored: Tensor, random: RowRandom | None = None) -> Tensor:
        """Stored rows (B, ...) to normalised latents (B, C, h, w) float32.

        Moments are sampled with ``random``, and give their mean without.
        """
        if self.lossless:
            return from_uint8(stored)
        raw = stored.float()
        if self.sampled:
            raw, std = raw.chunk(2, dim=1)
            if random is not None:
                raw = raw + std * random.normal(*self.shape)
        return self.codec.to_network(raw)

    def describe(self) -> str:
        """Two lines for the log."""
        return f"{super().describe()}{', mirrored' * self.mirrored}\n  {self.codec.describe()}"


@dataclass(frozen=True)
class Latents(DataConfig):
    """A folder that ``ucgm encode`` made."""

    path: str
    """the folder with codec.json, manifest.json and the shards."""
    codec: CodecSettings | None = None
    """which latents they must be, and those ``ucgm encode --config`` makes; null: any."""
    vae_path: str | None = None
    """where the autoencoder is on this machine, when not where the codec says."""
    flips: bool = True
    """show half of the samples mirrored, where flips are stored."""

    def open(self) -> LatentDataset:
        """Read headers and manifest; a ValueError says what does not fit."""
        folder = Path(self.path)
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: make it with `ucgm encode`.")
        dataset = LatentDataset(folder, self.vae_path, self.flips)
        if self.codec is not None:
            check_settings(self.codec, dataset.codec, folder)
        return dataset


def check_settings(settings: CodecSettings, codec: Codec, folder: Path) -> None:
    """Refuse shards of another codec than the settings ask for.

    Raises:
        ValueError: naming both sides.
    """
    wanted = settings.resolved(codec.kind != "kl")
    for name in ("vae", "size", "store", "normalise"):
        asked, there = getattr(wanted, name), getattr(codec, name)
        if asked != there:
            raise ValueError(
                f"data.codec asks for {name} {asked} (of {wanted.vae}) and {folder} holds {name} "
                f"{there} (of {codec.vae}): set data.path to the right set, or "
                f"data.codec.{name} to {there}."
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished set.

    Raises:
        ValueError: missing, or not readable.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
        missing = {"num_classes", "classes", "rows", "shards", "skipped"} - manifest.keys()
    except FileNotFoundError:
        if (folder / "encode.json").exists():
            raise ValueError(
                f"{folder} is not finished: run its `ucgm encode` again to go on."
            ) from None
        raise ValueError(
            f"{folder} has no {MANIFEST_FILE}: make a data set of it with `ucgm encode {folder} "
            "--vae NAME --out DIR`."
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}: encode the data again.")
    return manifest


def shard_paths(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    """The files of a manifest, each of the size it says.

    Raises:
        ValueError: naming the first shard that is missing or of another size.
    """
    paths = []
    for record in manifest["shards"]:
        path = folder / record["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != record["bytes"]:
            state = "is missing" if size is None else f"has {size:,} bytes of {record['bytes']:,}"
            raise ValueError(
                f"shard {path} {state}: run its `ucgm encode` again, which makes this shard anew."
            )
        paths.append(path)
    return paths
