"""What an encoding is: a source, a recipe, and whether the two fit, before the first image is read.

Shard k holds the rows of items [k S, (k + 1) S) of the source, in order, less those that could not
be read; batches do not cross shards.  So every byte of a shard follows from the job and k.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ucgm.data.extractor import Extractor, open_extractor
from ucgm.data.labels import MOST_CLASSES
from ucgm.data.latents.autoencoder import Autoencoder, Store, open_autoencoder
from ucgm.data.latents.codec import Codec, CodecSettings
from ucgm.data.latents.statistics import normalisation
from ucgm.data.sources.listing import ShardSource
from ucgm.data.sources.source import Source
from ucgm.runtime.values import Count, Range, check_values

DTYPES = {"float16": torch.float16, "float32": torch.float32, "uint8": torch.uint8}


@dataclass(frozen=True)
class Recipe:
    """How rows are made and cut into shards, see :func:`ucgm.data.encoding.command.encode_data`.

    Every setting changes the files; the last bits of a latent may depend on ``batch_size``.
    """

    codec: CodecSettings
    flips: bool
    dtype: Literal["float16", "float32", "uint8"]
    num_classes: Annotated[int, Range(0, MOST_CLASSES)] | None
    shard_size: Count
    batch_size: Count
    seed: int
    features: str | None = None
    features_weights: str | None = None

    def __post_init__(self) -> None:
        check_values(self, "encode")


@dataclass(frozen=True, eq=False)
class Job:
    """A recipe in which nothing is left open, and what it is applied to.

    Attributes:
        source: the items.
        recipe: resolved.
        autoencoder: loaded.
        shape: (C, h, w) of a latent.
        extractor: of features that are stored beside the latents; None: none are.
        asked: the recipe before anything was resolved.
    """

    source: Source
    recipe: Recipe
    autoencoder: Autoencoder
    shape: tuple[int, int, int]
    extractor: Extractor | None
    asked: Recipe

    @property
    def store(self) -> Store:
        """What of a posterior is kept."""
        assert self.recipe.codec.store is not None
        return self.recipe.codec.store

    @property
    def pixels(self) -> bool:
        """Whether rows are uint8 images."""
        return self.autoencoder.kind == "identity"

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-len(self.source) // self.recipe.shard_size)

    def items(self, number: int) -> range:
        """Items of shard ``number``."""
        first = number * self.recipe.shard_size
        return range(first, min(first + self.recipe.shard_size, len(self.source)))

    def batches(self, number: int) -> list[range]:
        """Items of shard ``number`` in the batches that are encoded together."""
        items, size = self.items(number), self.recipe.batch_size
        return [items[i : i + size] for i in range(0, len(items), size)]

    def codec(self, data: tuple[Tensor, Tensor] | None) -> Codec:
        """The codec of the shards, given mean (C,) and deviation (C,) of what they hold.

        Raises:
            ValueError: statistics that cannot be read, or are of another autoencoder.
        """
        asked, model, shape, store = self.recipe.codec, self.autoencoder, self.shape, self.store
        rule = asked.normalise
        assert rule is not None
        mean, std, scale = normalisation(rule, model, data, shape[0])
        return Codec(
            asked.vae, model.kind, model.digest, asked.size, shape, store, rule, mean, std, scale
        )

    def num_bytes(self) -> int:
        """About the size of the finished set."""
        numbers = math.prod(self.shape) * (1 + self.recipe.flips) * (1 + (self.store == "moments"))
        return (numbers * DTYPES[self.recipe.dtype].itemsize + 8) * len(self.source)

    def protocol(self) -> dict[str, Any]:
        """What is being made, as JSON."""
        recipe, features = asdict(self.recipe), {}
        if self.extractor is None:  # as before there were any
            del recipe["features"], recipe["features_weights"]
        else:
            features["features_sha256"] = self.extractor.digest
        return {
            "content": self.source.content,
            "items": len(self.source),
            "items_sha256": self.source.names_digest(),
            "vae_sha256": self.autoencoder.digest,
            "shape": list(self.shape),
            **recipe,
            **features,
        }


def make_job(source: Source, recipe: Recipe, device: str) -> Job:
    """Open the autoencoder and check all that can be checked before the first image.

    Raises:
        ValueError: what does not fit, and both sides of it.
    """
    autoencoder, asked, extractor = open_autoencoder(recipe.codec.vae), recipe, None
    if recipe.features is not None:
        if source.content != "images":
            raise ValueError(f"{source.where} holds {source.content}: features are of images.")
        extractor = open_extractor(
            recipe.features, recipe.features_weights, device, "--features-weights"
        )
    if source.content == "moments" and recipe.codec.store is None:
        recipe = replace(recipe, codec=replace(recipe.codec, store="moments"))
    codec = recipe.codec.resolved(autoencoder.deterministic)
    shape = autoencoder.latent_shape(codec.size, device)
    flips, dtype = recipe.flips, recipe.dtype
    if isinstance(source, ShardSource):
        codec = _fit_shards(source, recipe.codec, codec, shape)
        flips &= source.rows.flips
    elif source.content == "moments":
        flips = False
    if autoencoder.kind == "identity":
        if source.content != "images":
            raise ValueError(
                f"{source.where} holds {source.content}: identity encodes images only."
            )
        flips, dtype = False, "uint8"  # a pixel row is mirrored when it is read
    count = source.count_classes(recipe.num_classes)
    recipe = replace(recipe, codec=codec, flips=flips, dtype=dtype, num_classes=count)
    job = Job(source, recipe, autoencoder, shape, extractor, asked)
    job.codec((torch.zeros(shape[0]), torch.ones(shape[0])))  # fails now, not after the last shard
    return job


def _fit_shards(
    source: ShardSource, asked: CodecSettings, codec: CodecSettings, shape: tuple[int, int, int]
) -> CodecSettings:
    """Recognise moments by their channels; refuse latents of another autoencoder."""
    row, moments = tuple(source.rows.row_shape), (2 * shape[0], *shape[1:])
    if row not in (shape, moments):
        raise ValueError(
            f"{source.where} holds rows of {row}; {codec.vae} at {codec.size} pixels has latents "
            f"of {shape}, or moments of {moments}: another autoencoder or size made these."
        )
    found = "moments" if row == moments else codec.store
    if asked.store not in (None, found) or (row == shape and found == "moments"):
        raise ValueError(
            f"{source.where} holds rows of {row}: they cannot be stored as {asked.store}."
        )
    return replace(codec, store=found)
