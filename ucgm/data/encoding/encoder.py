"""From items of a source to rows of a shard: reading in loader processes, encoding on the device.

    images    crop, uint8 -> posterior (mean, std) of the VAE, and of the mirrored image -> stored
    moments   (mean, std) of a file                                                     -> stored
    latents   rows of foreign shards, in another precision

    stored = mean | mean + std * n | (mean, std),      n ~ N(0, 1) keyed by (seed, item)

so that a row does not depend on the batch, the process or the restart that made it.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ucgm.data.latents.autoencoder import Autoencoder, Store
from ucgm.data.latents.shards import ShardSet
from ucgm.data.pixels import UnreadableImage, from_uint8, read_image
from ucgm.data.sources.listing import ShardSource, Source
from ucgm.runtime.randomness import RowRandom


class Batch(NamedTuple):
    """What a loader process hands over.

    Attributes:
        items: (n,) int64, numbers of the items that could be read.
        values: (n, ...): uint8 images, float32 moments, or latents.
        flips: (n, ...) latents of the mirrored images, where the source has them.
        skipped: name and reason of each unreadable item.
        failure: what makes going on impossible, such as a disk that does not answer.
    """

    items: Tensor
    values: Tensor
    flips: Tensor | None
    skipped: list[tuple[str, str]]
    failure: str | None = None


class Reader(torch.utils.data.Dataset):
    """Reads items of a source, for a DataLoader.

    Args:
        source: the items.
        size: side of the crop of images.
        channels: rows of a ``moments`` file, two per latent channel.
        flips: read ``latents_flip`` of foreign shards.
    """

    def __init__(self, source: Source, size: int, channels: int, flips: bool) -> None:
        self.source, self.size, self.channels, self.flips = source, size, channels, flips

    def __len__(self) -> int:
        """Number of items."""
        return len(self.source)

    def __getitems__(self, items: Sequence[int]) -> Batch:
        """Read a batch; nothing is raised here, because it would cross a process as a traceback."""
        try:
            if isinstance(self.source, ShardSource):
                return self._rows(self.source.rows, np.asarray(items))
            return self._files(items)
        except (OSError, ValueError) as error:
            return Batch(torch.empty(0), torch.empty(0), None, [], str(error))

    def _rows(self, rows: ShardSet, items: np.ndarray) -> Batch:
        straight = rows.gather(items, np.zeros(len(items), dtype=bool))[0]
        mirrored = None
        if self.flips:
            mirrored = rows.gather(items, np.ones(len(items), dtype=bool))[0]
        return Batch(torch.from_numpy(items), straight, mirrored, [])

    def _files(self, items: Sequence[int]) -> Batch:
        good, values, skipped = [], [], []
        for item in items:
            content = self.source.content_of(item)
            try:
                if self.source.content == "moments":
                    values.append(read_moments(content, self.channels))
                else:
                    values.append(read_image(content, self.size))
                good.append(item)
            except UnreadableImage as error:
                skipped.append((self.source.entry(item), str(error)))
            except ValueError as error:
                raise ValueError(f"{self.source.entry(item)}: {error}") from error
        stacked = torch.from_numpy(np.stack(values)) if values else torch.empty(0)
        return Batch(torch.tensor(good, dtype=torch.int64), stacked, None, skipped)


def read_moments(content: bytes, channels: int) -> np.ndarray:
    """Bytes of a .npy file to (channels, h, w) float32: means, then standard deviations.

    Raises:
        UnreadableImage: for a damaged file.
        ValueError: for another number of channels: not moments, or of another autoencoder.
    """
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[0] != channels:
        raise ValueError(
            f"an array {array.shape} cannot be moments of this autoencoder, which are "
            f"({channels}, h, w)."
        )
    return np.ascontiguousarray(array, dtype=np.float32)


class Encoder:
    """Batches to rows of a shard.

    Args:
        autoencoder: of the images.
        store: ``sample``, ``mean`` or ``moments``.
        dtype: of the stored latents.
        flips: encode mirrored images too.
        seed: of posterior samples.
        device: where to encode.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        store: Store,
        dtype: torch.dtype,
        flips: bool,
        seed: int,
        device: str,
    ) -> None:
        self.autoencoder, self.store, self.dtype = autoencoder, store, dtype
        self.flips, self.seed, self.device = flips, seed, device

    def rows(self, batch: Batch, source: Source) -> dict[str, Tensor]:
        """``latents``, ``labels`` and, with flips, ``latents_flip`` on the CPU.

        Raises:
            ValueError: a latent that is not finite, with the item's name.
        """
        values = {"latents": batch.values}
        if batch.flips is not None:
            values["latents_flip"] = batch.flips
        random = RowRandom.for_samples(self.seed, batch.items)
        if source.content == "images" and self.autoencoder.kind != "identity":
            pixels = from_uint8(batch.values.to(self.device))
            if self.flips:
                values["latents_flip"] = pixels.flip(-1)
            values["latents"] = pixels
            for name, part in values.items():
                mean, std = self.autoencoder.posterior(part)
                values[name] = self._stored(mean, std, random)
        elif source.content == "moments":
            mean, std = values["latents"].chunk(2, dim=1)
            values["latents"] = self._stored(mean, std, random)
        rows = {name: part.to("cpu", self.dtype).contiguous() for name, part in values.items()}
        for name, part in rows.items():
            self._check(part, name, batch, source)
        rows["labels"] = torch.from_numpy(source.labels)[batch.items]
        return rows

    def _stored(self, mean: Tensor, std: Tensor | None, random: RowRandom) -> Tensor:
        """What of a posterior is kept."""
        if self.store == "mean" or std is None:
            return mean
        if self.store == "moments":
            return torch.cat((mean, std), dim=1)
        return mean + std * random.normal(*mean.shape[1:]).to(mean.device)

    def _check(self, part: Tensor, name: str, batch: Batch, source: Source) -> None:
        if self.dtype == torch.uint8:
            return
        bad = ~torch.isfinite(part).flatten(1).all(dim=1)
        if bad.any():
            which = int(batch.items[bad][0])
            largest = batch.values[bad][0].float().abs().max()
            raise ValueError(
                f"the {name} of {source.entry(which)} in {source.where} are not finite in "
                f"{self.dtype} ({int(bad.sum())} of this batch; largest value read {largest:.3g}). "
                "Nothing of its shard was written: remove the item, or try --dtype float32."
            )


def channel_moments(stored: Tensor, store: Store) -> tuple[int, Tensor, Tensor]:
    """Count, mean (C,) and sum of squared deviations (C,) of raw latents, in float64.

    Args:
        stored: (n, C, h, w), or (n, 2C, h, w) of moments, whose samples have the variance of the
            means plus the mean of the variances.
        store: what these are.
    """
    values = stored.double()
    extra = torch.zeros((), dtype=torch.float64)
    if store == "moments":
        values, std = values.chunk(2, dim=1)
        extra = std.square().sum(dim=(0, 2, 3))
    count = values.numel() // values.shape[1]
    mean = values.mean(dim=(0, 2, 3))
    squares = (values - mean[None, :, None, None]).square().sum(dim=(0, 2, 3)) + extra
    return count, mean, squares


def merge_moments(parts: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean (C,) and standard deviation (C,) of the union (Chan, Golub and LeVeque, 1979)."""
    count, mean, squares = parts[0]
    for other, other_mean, other_squares in parts[1:]:
        delta, total = other_mean - mean, count + other
        mean = mean + delta * (other / total)
        squares = squares + other_squares + delta.square() * (count * other / total)
        count = total
    return mean, (squares / count).sqrt()
