"""Latents in shards: the data set that ``ucgm encode`` makes and large trainings read.

    DIR/codec.json       what the latents mean (:mod:`ucgm.data.latents.codec`)
    DIR/manifest.json    classes, and per shard its rows, bytes and SHA-256; what was skipped
    DIR/*.safetensors    the rows (:mod:`ucgm.data.latents.shards`)
    DIR/features/        features of the same images (B, D, g, g), in shards of the same rows

A batch leaves the disk as it is stored, half as large as float32, and is normalised on the device.
Opening reads two JSON files and one header per shard, and compares sizes with the manifest; the
checksum of a shard is compared when it is first read, and by ``ucgm data DIR``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ucgm.data.dataset import DataConfig, Dataset, flips_fit
from ucgm.data.labels import MOST_CLASSES
from ucgm.data.latents.codec import Codec, CodecSettings
from ucgm.data.latents.shards import ShardSet
from ucgm.data.pixels import from_uint8
from ucgm.runtime.randomness import RowRandom
from ucgm.runtime.reading import check_fields, read_json

MANIFEST_FILE, FEATURES = "manifest.json", "features"
RECORD = {"file": str, "rows": int, "bytes": int, "sha256": str}
SKIPPED = [tuple[str, str]]  # name and reason of items that could not be read
_MANIFEST = {"num_classes": int, "classes": [str], "rows": int, "shards": [RECORD]}


class LatentDataset(Dataset):
    """Rows of shards as normalised latents (or as pixels, with the identity codec).

    The arguments are ``path``, ``vae_path``, ``flips`` and ``checksums`` of :class:`Latents`.
    """

    codec: Codec  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        folder: Path,
        place: str | None = None,
        mirrored: bool | None = None,
        checksums: bool = True,
    ) -> None:
        manifest = read_manifest(folder)
        self.codec = codec = Codec.load(folder, place)
        self.name = folder.name
        self.shape = codec.shape
        self.num_classes = manifest["num_classes"]
        self.class_names = tuple(manifest["classes"])
        self.lossless = codec.kind == "identity"
        self.sampled = codec.store == "moments"
        digests = [record["sha256"] for record in manifest["shards"]] if checksums else None
        paths = [folder / record["file"] for record in manifest["shards"]]
        self.rows = ShardSet(paths, self.num_classes, digests)
        for shard, record in zip(self.rows.shards, manifest["shards"], strict=True):
            for name, found in (("rows", shard.rows), ("bytes", shard.bytes)):
                if found != record[name]:
                    raise ValueError(
                        f"shard {shard.path} has {found} {name}, in {MANIFEST_FILE} "
                        f"{record[name]}: one of them is of another set."
                    )
        if self.rows.row_shape != codec.stored_shape:
            raise ValueError(
                f"the shards of {folder} hold {self.rows.row_shape} per row and its codec "
                f"{codec.describe()} stores {codec.stored_shape}: they do not belong together."
            )
        self.features: ShardSet | None = None
        self.featured_by = ""
        if FEATURES in manifest:
            self._open_features(folder, manifest, checksums)
        wanted = flips_fit(self.class_names) if mirrored is None else mirrored
        self.mirrored = wanted and (self.rows.flips or self.lossless)

    def _open_features(self, folder: Path, manifest: dict[str, Any], checksums: bool) -> None:
        """The shards of features, row by row beside those of latents."""
        records = [record.get(FEATURES) for record in manifest["shards"]]
        facts = {"name": str, "sha256": str, "note": str}
        check_fields({"records": records}, {"records": [RECORD]}, f"{folder / MANIFEST_FILE}")
        check_fields(manifest[FEATURES], facts, f"{folder / MANIFEST_FILE}: features")
        paths = [folder / FEATURES / Path(record["file"]).name for record in records]
        digests = [record["sha256"] for record in records] if checksums else None
        self.features = ShardSet(paths, self.num_classes, digests)
        self.featured_by = manifest[FEATURES]["name"]
        if [s.rows for s in self.features.shards] != [s.rows for s in self.rows.shards]:
            raise ValueError(f"{folder / FEATURES} has other rows than {folder}: encode it again.")

    def read_features(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Features (B, D, g, g) as stored; index n + i is of row i flipped."""
        assert self.features is not None
        wanted = np.asarray(indices, dtype=np.int64)
        return self.features.gather(wanted % len(self), wanted >= len(self))[0]

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

    def samples(self) -> str:
        """Their number, and how they lie in shards."""
        return f"{super().samples()} in {len(self.rows.shards)} shards"

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
        return f"{super().describe()}\n  {self.codec.describe()}"


@dataclass(frozen=True)
class Latents(DataConfig):
    """A folder that ``ucgm encode`` made."""

    path: str
    """the folder with codec.json, manifest.json and the shards."""
    codec: CodecSettings | None = None
    """which latents they must be, and those ``ucgm encode --config`` makes; null: any."""
    vae_path: str | None = None
    """where the autoencoder is on this machine, when not where the codec says."""
    flips: bool | None = None
    """show half of the samples mirrored, where flips are stored; null: unless every class is named
    by one letter or digit, which a flip would change."""
    checksums: bool = True
    """read each shard once in full when it is first used, and refuse one that has changed."""

    def open(self) -> LatentDataset:
        """Read headers and manifest; a ValueError says what does not fit."""
        folder = Path(self.path)
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: make it with `ucgm encode`.")
        dataset = LatentDataset(folder, self.vae_path, self.flips, self.checksums)
        if self.codec is None:
            return dataset
        codec, wanted = dataset.codec, self.codec.resolved(dataset.codec.kind != "kl")
        for name, asked in asdict(wanted).items():
            if asked != (there := getattr(codec, name)):
                raise ValueError(
                    f"data.codec asks for {name} {asked} (of {wanted.vae}) and {folder} holds "
                    f"{name} {there} (of {codec.vae}): set data.path to the right set, or "
                    f"data.codec.{name} to {there}."
                )
        return dataset


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished set.

    Raises:
        ValueError: missing, not readable, or with fields that cannot be those of a set.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = read_json(path, {**_MANIFEST, "skipped": SKIPPED})
    except FileNotFoundError:
        if (folder / "encode.json").exists():
            raise ValueError(
                f"{folder} is not finished: run its `ucgm encode` again to go on."
            ) from None
        raise ValueError(
            f"{folder} has no {MANIFEST_FILE}: make a data set of it with `ucgm encode {folder} "
            "--vae NAME --out DIR`."
        ) from None
    classes, records = manifest["classes"], manifest["shards"]
    for name in (record["file"] for record in records):
        if not name.endswith(".safetensors") or Path(name).name != name or "\0" in name:
            raise ValueError(f"{path} names {name!r:.60}, which is no file of its folder.")
    problem = None
    if manifest["num_classes"] > MOST_CLASSES:
        problem = f"num_classes {manifest['num_classes']}, above {MOST_CLASSES}"
    elif classes and len(classes) != manifest["num_classes"]:
        problem = f"{len(classes)} class names for {manifest['num_classes']} classes"
    elif len({record["file"] for record in records}) < len(records):
        problem = "one shard twice"
    elif sum(record["rows"] for record in records) != manifest["rows"]:
        problem = f"{manifest['rows']} rows, which are not those of its shards together"
    if problem is not None:
        raise ValueError(f"{path} has {problem}: it is not what `ucgm encode` wrote.")
    return manifest
