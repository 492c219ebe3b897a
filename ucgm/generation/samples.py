"""Samples by index: sample i depends on (network, sampler, seed, i) and on nothing else.

    label_i  = i mod C  (balanced, any prefix is balanced to one), or a uniform class drawn from i
    noise_i  = the random numbers whose key is (seed, i), see :mod:`ucgm.runtime.randomness`
    x_i      = sampler(network, noise_i, label_i),    image_i = uint8(decode(x_i))

so the same indices at 1, 2 and 4 steps are the same samples with more or less work, neither the
batch size nor the number of processes is part of a result, and a stopped job goes on anywhere.
The initial noise is drawn on the CPU, for all devices alike.

To the last bit this takes calls of one shape: network and decoder work on tiles of ``tile`` rows,
see :mod:`ucgm.runtime.fixed_batches`.  The tile is part of a protocol as the precision is.  Two
things are not in our hands: another kind of processor, and on CPUs another number of threads, may
round otherwise.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from ucgm.data.dataset import Dataset
from ucgm.data.labels import some_names
from ucgm.runtime.fixed_batches import Tile, by_tiles
from ucgm.runtime.precision import float32_products
from ucgm.runtime.randomness import RowRandom
from ucgm.runtime.values import Count, Number, Range, check_values
from ucgm.sampler import Sampler
from ucgm.sampler.guidance import Network, Watched

LabelRule = Literal["balanced", "random"]
Precision = Literal["fp32", "tf32", "bf16", "fp64"]
TILE = 32
Seed = Annotated[int, Range(-(2**63), 2**63 - 1)]


@dataclass(frozen=True)
class SamplingConfig:
    """How a run is sampled."""

    seed: Seed = 0
    """of noise, labels and sampling noise."""
    labels: LabelRule = "balanced"
    """balanced (class i mod C) or random."""
    classes: tuple[int | str, ...] | None = None
    """only these classes, in turn: numbers, or names of the run's data."""
    guidance_scale: Number | None = None
    """weight of classifier-free guidance; 1 is off, the run's when left out."""
    precision: Precision = "fp32"
    """fp32, tf32 (products of 10 bits on GPUs), bf16 (autocast of the network) or fp64."""
    tile: Count = TILE
    """rows of every network and decoder call, whatever is asked for: the last bits of an image
    depend on it, and on neither batch size nor processes."""

    def __post_init__(self) -> None:
        check_values(self, "sampling")


@dataclass
class RowCounter:
    """Rows that networks are asked for.

    Rows over samples is the number of function evaluations, NFE: an evaluation under
    classifier-free guidance or autoguidance counts two, one outside the guidance interval counts
    one.  Rows that fill up a tile do not count.
    """

    rows: int = 0

    def counted(self, network: Network) -> Network:
        """``network``, whose rows are counted here."""

        def count(x: Tensor) -> Tensor:
            self.rows += len(x)
            return x

        return Watched(network, count)


@dataclass(frozen=True, eq=False)
class SampleSet:
    """An endless, indexed set of samples.

    Attributes:
        network: with its guidance wrapped around it, in evaluation mode.
        sampler: from noise to data.
        data: gives the shape, the classes and ``decode``.
        settings: seed, labels, precision (of the network; decoding is always float32) and tile
            (twice as many rows of the network under guidance).
        device: where the network is.
        counter: counts the network's rows.
        guide_digest: sha256 of the weights of the weaker network of autoguidance.
    """

    network: Network
    sampler: Sampler
    data: Dataset
    settings: SamplingConfig = SamplingConfig()
    device: torch.device | str = "cpu"
    counter: RowCounter = field(default_factory=RowCounter)
    guide_digest: str | None = None

    def with_steps(self, steps: int) -> "SampleSet":
        """The same samples with another number of steps."""
        if steps < 1:
            raise ValueError(f"the number of steps is {steps}: it must be at least 1.")
        return replace(self, sampler=replace(self.sampler, steps=steps))

    def labels_at(self, indices: Tensor) -> Tensor:
        """Classes (B,) int64 of the samples ``indices`` (B,); 0, the null class, without classes.

        Raises:
            ValueError: for a class that the data have not.
        """
        settings, num_classes = self.settings, self.data.num_classes
        if num_classes == 0:
            if settings.classes:
                raise ValueError("classes were given, but these data have none: leave them out.")
            return torch.zeros_like(indices)
        chosen = range(num_classes) if settings.classes is None else settings.classes
        if not chosen:
            raise ValueError("the list of classes is empty: give at least one, or leave it out.")
        allowed = [self._number_of(c) for c in chosen]
        pick = indices % len(allowed)
        if settings.labels == "random":
            numbers = RowRandom.for_rows(settings.seed, -2, indices).uniform(dtype=torch.float64)
            pick = (numbers * len(allowed)).long()
        return torch.tensor(allowed, dtype=torch.int64)[pick]

    def _number_of(self, chosen: int | str) -> int:
        """The number of a class, from its number or its name."""
        names, count = self.data.class_names, self.data.num_classes
        if isinstance(chosen, str) and chosen in names:
            return names.index(chosen)
        if isinstance(chosen, int) and 0 <= chosen < count:
            return chosen
        listed = some_names([f"{k} {name}" for k, name in enumerate(names)])
        wrong = "out of range" if isinstance(chosen, int) else "unknown"
        raise ValueError(
            f"class {chosen} is {wrong}: choose from 0 to {count - 1}"
            + (f" ({listed})." if names else ".")
        )

    def latents(self, indices: Tensor, places: Tensor | None = None) -> Tensor:
        """Samples (n, C, H, W) float32 of ``indices`` (n,) in the network's space.

        Args:
            indices: numbers of the samples.
            places: as in :meth:`images`, which makes the same passes.
        """
        slots = indices if places is None else places
        return by_tiles(slots, self.settings.tile, lambda tile: self.tile_latents(indices, tile))

    def images(self, indices: Tensor, places: Tensor | None = None) -> Tensor:
        """Images (n, channels, height, width) uint8 of ``indices`` (n,), on the CPU.

        Args:
            indices: numbers of the samples.
            places: (n,) numbers that decide the slots in place of the indices: scattered samples
                fill fewer tiles, and equal the others up to rounding.
        """
        slots = indices if places is None else places
        return by_tiles(
            slots, self.settings.tile, lambda tile: self.decode(self.tile_latents(indices, tile))
        )

    def raw_latents(self, indices: Tensor) -> Tensor:
        """Samples (n, C, H, W) float32 of ``indices`` (n,) as the autoencoder takes them, on the
        CPU; in the network's space where no autoencoder is known.
        """
        x, codec = self.latents(indices).cpu(), self.data.codec
        return x if codec is None else codec.to_raw(x)

    def decode(self, x: Tensor) -> Tensor:
        """Images (tile, channels, height, width) uint8 of a whole tile, on the CPU."""
        return self.data.decode(x).cpu()

    @torch.no_grad()
    def tile_latents(self, indices: Tensor, tile: Tile) -> Tensor:
        """Samples (tile, C, H, W) float32 on the device: those of ``indices`` in their slots, and
        others.
        """
        size, precision = self.settings.tile, self.settings.precision
        indices = tile.fill(torch.arange(size), indices.cpu())
        before = self.counter.rows
        random = RowRandom.for_samples(self.settings.seed, indices)
        noise = random.normal(*self.data.shape)
        if precision == "fp64":
            noise = noise.double()
        noise = noise.to(self.device)
        random.keys = random.keys.to(self.device)
        y = self.labels_at(indices).to(self.device)
        device_type = torch.device(self.device).type
        cast = torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16")
        with cast, float32_products(precision == "tf32"):
            x = self.sampler(self.network, noise, y, random).float()
        self.counter.rows = before + (self.counter.rows - before) * len(tile.rows) // size
        return x
