"""From items of a source to rows of a shard: reading in threads, encoding on the device.

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

from ucgm.data.encoding.job import DTYPES, Job
from ucgm.data.pixels import UnreadableImage, from_uint8, read_image
from ucgm.data.sources.listing import ShardSource
from ucgm.data.sources.source import Source
from ucgm.runtime.randomness import RowRandom


class Batch(NamedTuple):
    """What was read of some items.

    Attributes:
        items: (n,) int64, numbers of the items that could be read.
        values: (n, ...): uint8 images, float32 moments, or latents.
        flips: (n, ...) latents of the mirrored images, where the source has them.
        skipped: name and reason of each unreadable item.
    """

    items: Tensor
    values: Tensor
    flips: Tensor | None
    skipped: list[tuple[str, str]]


def read_batch(
    source: Source, items: Sequence[int], size: int, channels: int, flips: bool = False
) -> Batch:
    """Read items of a source.

    Args:
        source: where they are.
        items: their numbers.
        size: side of the crop of images.
        channels: of a ``moments`` file, two per latent channel.
        flips: read ``latents_flip`` of foreign shards.

    Raises:
        ValueError: what makes going on impossible, such as a disk that does not answer.
    """
    good, values, skipped = [], [], []
    try:
        if isinstance(source, ShardSource):
            which = np.asarray(items)
            latents = source.rows.gather(which, np.zeros(len(which), dtype=bool))[0]
            mirrored = None
            if flips:
                mirrored = source.rows.gather(which, np.ones(len(which), dtype=bool))[0]
            return Batch(torch.from_numpy(which), latents, mirrored, [])
        for item in items:
            try:
                content = source.content_of(item)
                moments = source.content == "moments"
                read = read_moments(content, channels) if moments else read_image(content, size)
                values.append(read)
                good.append(item)
            except UnreadableImage as error:
                skipped.append((source.entry(item), str(error)))
            except ValueError as error:
                raise ValueError(f"{source.entry(item)}: {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{source.where}: {error}. Finished shards are kept.") from error
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


def encode_rows(job: Job, batch: Batch, device: str) -> dict[str, Tensor]:
    """``latents``, ``labels`` and, with flips, ``latents_flip`` of a batch, on the CPU.

    ``features`` and ``features_flip`` (B, D, g, g) as well, where the job has an extractor.

    Raises:
        ValueError: a latent that is not finite, with the item's name.
    """
    source, dtype = job.source, DTYPES[job.recipe.dtype]
    random = RowRandom.for_samples(job.recipe.seed, batch.items)

    def stored(mean: Tensor, std: Tensor | None) -> Tensor:
        if job.store == "mean" or std is None:
            return mean
        if job.store == "moments":
            return torch.cat((mean, std), dim=1)
        return mean + std * random.normal(*mean.shape[1:]).to(mean.device)

    values = {"latents": batch.values}
    if batch.flips is not None:
        values["latents_flip"] = batch.flips
    if source.content == "images" and not job.pixels:
        pixels = from_uint8(batch.values.to(device))
        values["latents"] = stored(*job.autoencoder.posterior(pixels))
        if job.recipe.flips:
            values["latents_flip"] = stored(*job.autoencoder.posterior(pixels.flip(-1)))
    elif source.content == "moments":
        values["latents"] = stored(*batch.values.chunk(2, dim=1))
    rows = {name: part.to("cpu", dtype).contiguous() for name, part in values.items()}
    for name, part in rows.items():
        bad = ~torch.isfinite(part).flatten(1).all(dim=1)
        if bad.any():
            which = int(batch.items[bad][0])
            largest = batch.values[bad][0].float().abs().max()
            raise ValueError(
                f"the {name} of {source.place(which)} are not finite in "
                f"{dtype} ({int(bad.sum())} of this batch; largest value read {largest:.3g}). "
                "Nothing of its shard was written: remove the item, or try --dtype float32."
            )
    if job.extractor is not None:
        half = DTYPES[job.asked.dtype]
        rows["features"] = job.extractor.maps(batch.values).to(half)
        if job.asked.flips:
            rows["features_flip"] = job.extractor.maps(batch.values.flip(-1)).to(half)
    rows["labels"] = torch.from_numpy(source.labels)[batch.items]
    return rows
