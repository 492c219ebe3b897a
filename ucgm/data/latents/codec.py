"""The codec: pixels <-> raw latents <-> normalised latents, one object for both directions.

    raw        = autoencoder(pixels)                          what the VAE speaks
    normalised = (raw - mean_c) / std_c * scale               what the network sees, per channel c
    raw        = normalised / scale * std_c + mean_c

where mean, std and scale come from is in :mod:`ucgm.data.latents.statistics`.

A codec is saved beside the shards it made (``codec.json``) and in the folder of every run that is
trained on them.  Two that differ are refused with both named: latents of one scaling decoded with
another look almost right, and cost weeks.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucgm.data.latents.autoencoder import PUBLIC_VAES, Autoencoder, Store, open_autoencoder
from ucgm.data.pixels import from_uint8, to_uint8
from ucgm.runtime.files import write_atomic
from ucgm.runtime.reading import read_json
from ucgm.runtime.values import Count, Number, Positive, check_values

CODEC_FILE = "codec.json"
_FORMAT = 1
DECODE_BATCH = 16  # bounds the activations of a decoder at 512 pixels to a few GB


@dataclass(frozen=True)
class CodecSettings:
    """Which latents a run works on; checked against the codec beside the shards."""

    vae: str = "sd-vae-ft-ema"
    """name, folder, file or Hub id of the autoencoder."""
    size: Count = 256
    """side of the images in pixels."""
    store: Store | None = None
    """posterior sample, mean or moments; null: as published for this autoencoder."""
    normalise: str | None = None
    """scale, channel, edm2, none or a statistics file; null: as published for this autoencoder."""

    def __post_init__(self) -> None:
        check_values(self, "data.codec")

    def resolved(self, deterministic: bool) -> "CodecSettings":
        """These settings with every null replaced.

        Raises:
            ValueError: for samples or moments of a model that has no posterior, or pixels that
                should be normalised.
        """
        known = PUBLIC_VAES.get(self.vae)
        store = self.store or (known.store if known else "mean" if deterministic else "sample")
        if deterministic and store != "mean":
            raise ValueError(f"{self.vae} gives one latent per image: store must be mean.")
        usual = known.normalise if known else "none" if self.vae == "identity" else "channel"
        rule = self.normalise or usual
        if self.vae == "identity" and rule != "none":
            raise ValueError(f"identity keeps pixels: normalise must be none, got {rule}.")
        return replace(self, store=store, normalise=rule)


@dataclass(frozen=True)
class Codec:
    """Both directions between uint8 images and what the network sees.

    Attributes:
        vae: name, folder, file or Hub id of the autoencoder.
        kind: ``kl``, ``dc``, ``rae`` or ``identity``.
        digest: SHA-256 of its weights; empty: not known (of a public checkpoint), any will do.
        size: side of the images in pixels.
        shape: (C, h, w) of a latent.
        store: what the shards hold: a posterior ``sample``, its ``mean``, or ``moments``
            (mean and std, 2C channels, sampled anew every time).
        normalise: where mean, std and scale come from.
        mean: (C,) of the raw latents.
        std: (C,) of the raw latents.
        scale: standard deviation of the normalised latents.
        place: where the autoencoder is on this machine, when not at ``vae``; not saved.
    """

    vae: str
    kind: str
    digest: str
    size: Count
    shape: tuple[Count, Count, Count]
    store: Store
    normalise: str
    mean: tuple[Number, ...]
    std: tuple[Positive, ...]
    scale: Positive = 1.0
    place: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse statistics that do not fit the latents or cannot be divided by."""
        check_values(self, f"codec of {self.vae}: codec")
        channels = self.shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(
                f"{self.vae} has {channels} latent channels, its statistics {len(self.mean)} means "
                f"and {len(self.std)} deviations: they belong to another autoencoder."
            )

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of one row of a shard."""
        channels, height, width = self.shape
        return (2 * channels if self.store == "moments" else channels, height, width)

    def to_network(self, raw: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to normalised ones, float32."""
        mean, std = self._columns(raw)
        if self.normalise == "none":
            return raw.float()
        x = (raw.float() - mean).div_(std)
        return x if self.scale == 1.0 else x.mul_(self.scale)

    def to_raw(self, x: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to raw ones, float32."""
        mean, std = self._columns(x)
        return x.float() / self.scale * std + mean

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 to normalised latents, the mean of the posterior."""
        return self.to_network(self.autoencoder().posterior(from_uint8(images))[0])

    def pixels(self, x: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to images (B, 3, H, W), float, with gradient."""
        return self.autoencoder().decode(self.to_raw(x))

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to images (B, 3, H, W) uint8, a few at a time."""
        autoencoder = self.autoencoder()
        parts = self.to_raw(x).split(DECODE_BATCH)
        return torch.cat([to_uint8(autoencoder.decode(part)) for part in parts])

    def autoencoder(self) -> Autoencoder:
        """The autoencoder, loaded when first asked for.

        Raises:
            ValueError: it is not where the codec says, or has other weights.
        """
        try:
            found = open_autoencoder(self.place or self.vae)
        except ValueError as error:
            raise ValueError(
                f"{error} A copy elsewhere can be named as data.vae_path, of a run in its "
                "config.yaml; `ucgm sample --format latents` needs none."
            ) from error
        if self.digest and found.digest != self.digest:
            raise ValueError(
                f"the autoencoder at {self.place or self.vae} has weights {found.digest[:12]} and "
                f"these latents were made by {self.vae} with weights {self.digest[:12]}: give the "
                "place of the latter as data.vae_path."
            )
        return found

    def describe(self) -> str:
        """One line: autoencoder, size, what is stored, scaling."""
        shape = "x".join(map(str, self.shape))
        digest = f" {self.digest[:12]}" if self.digest else ""
        return (
            f"{self.vae} ({self.kind}{digest}, {self.size} px -> {shape}, {self.store}, "
            f"normalise {self.normalise})"
        )

    def check(self, other: "Codec", mine: str, others: str) -> None:
        """Refuse ``other`` unless it is this codec; ``mine`` and ``others`` name the two in errors.

        Raises:
            ValueError: naming both sides and what differs.
        """
        names = [f.name for f in fields(self) if f.compare]
        differing = [name for name in names if getattr(self, name) != getattr(other, name)]
        if differing:
            raise ValueError(
                f"{mine} has the codec {self.describe()} and {others} has {other.describe()}: they "
                f"differ in {', '.join(differing)}. Latents of one mean nothing to the other; use "
                "the data set this was made for."
            )

    def check_scaling(self, other: "Codec", mine: str, others: str) -> None:
        """Refuse ``other`` unless the network sees about the same numbers, in the same channels.

        Statistics of two encodings of the same images agree to a few thousandths; a tenth of a
        deviation is another normalisation.

        Raises:
            ValueError: naming both sides.
        """
        same = len(self.mean) == len(other.mean)
        for m, s, n, r in zip(self.mean, self.std, other.mean, other.std, strict=False):
            ratio = r / other.scale * self.scale / s
            same &= 0.9 < ratio < 1.1 and abs(n - m) * self.scale / s < 0.1
        if not same:
            raise ValueError(
                f"{mine} works on {self.describe()} and {others} holds {other.describe()}: latents "
                "of one mean nothing to the other. Encode the data with the autoencoder and the "
                "statistics of the run."
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        values.pop("place")
        return {"format": _FORMAT, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str, place: str | None = None) -> "Codec":
        """The inverse of :meth:`to_dict`; ``where`` is named in errors."""
        values = dict(values)
        if values.pop("format", None) != _FORMAT:
            raise ValueError(f"{where} is not a codec of format {_FORMAT}: encode the data again.")
        try:
            return cls(**values, place=place)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} is damaged: {error}") from error

    def save(self, folder: Path) -> None:
        """Write ``codec.json``."""
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        write_atomic(folder / CODEC_FILE, text)

    @classmethod
    def load(cls, folder: Path, place: str | None = None) -> "Codec":
        """Read ``codec.json``; a ValueError says what is wrong."""
        path = folder / CODEC_FILE
        try:
            values = read_json(path)
        except FileNotFoundError:
            raise ValueError(
                f"{folder} has no {CODEC_FILE}: what its latents mean is not recorded. Make a data "
                f"set of it with `ucgm encode {folder} --vae NAME --out DIR`."
            ) from None
        return cls.from_dict(values, str(path), place)

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std (1, C, 1, 1) on the device of ``like``; the host does not wait."""
        if like.ndim != 4 or like.shape[1] != self.shape[0]:
            raise ValueError(
                f"{self.vae} has {self.shape[0]} latent channels, got {tuple(like.shape)}."
            )
        values = torch.tensor([self.mean, self.std], dtype=torch.float32)
        mean, std = values.to(like.device, non_blocking=True).view(2, 1, -1, 1, 1)
        return mean, std
