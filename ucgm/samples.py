"""Samples by index: sample i depends on (network, sampler, seed, i) and on nothing else.

    label_i  = i mod C  (balanced, any prefix is balanced to one), or a uniform class drawn from i
    noise_i  = the random numbers whose key is (seed, i), see :mod:`ucgm.randomness`
    x_i      = sampler(network, noise_i, label_i),    image_i = uint8(decode(x_i))

so the same indices at 1, 2 and 4 steps are the same samples with more or less work, neither the
batch size nor the number of processes is part of a result, and a stopped job goes on anywhere.
The initial noise is drawn on the CPU, for all devices alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ucgm.data.source import Dataset
from ucgm.randomness import RowRandom
from ucgm.sampler import Sampler
from ucgm.sampler.guidance import Network, call

LabelRule = Literal["balanced", "random"]
Precision = Literal["fp32", "bf16", "fp64"]


class RowCounter:
    """A network that counts the rows it is asked for.

    Rows over samples is the number of function evaluations, NFE: an evaluation under
    classifier-free guidance counts two, one outside the guidance interval counts one.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.rows = 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        """The network's prediction."""
        self.rows += len(x)
        return call(self.network, x, t, y, s)


def labels_of(
    indices: Tensor,
    num_classes: int,
    rule: LabelRule = "balanced",
    seed: int = 0,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """Class of each sample index (B,) int64; the null class 0 where there are no classes.

    Args:
        indices: (B,) int64 sample numbers.
        num_classes: classes of the data.
        rule: ``balanced`` gives class ``i mod C``; ``random`` a uniform class from (seed, i).
        seed: of the ``random`` rule.
        classes: draw from these classes only.

    Raises:
        ValueError: for a class outside the data's, or an unknown rule.
    """
    if num_classes == 0:
        if classes:
            raise ValueError("classes were given, but these data have none: leave them out.")
        return torch.zeros_like(indices)
    allowed = torch.arange(num_classes) if classes is None else torch.tensor(list(classes))
    if allowed.numel() == 0:
        raise ValueError("the list of classes is empty: give at least one, or leave it out.")
    outside = [c for c in allowed.tolist() if not 0 <= c < num_classes]
    if outside:
        raise ValueError(f"class {outside[0]} is out of range: choose from 0 to {num_classes - 1}.")
    if rule == "balanced":
        pick = indices % len(allowed)
    elif rule == "random":
        number = RowRandom.for_rows(seed, -2, indices).uniform(1, dtype=torch.float64)[:, 0]
        pick = (number * len(allowed)).long()
    else:
        raise ValueError(f"label rule {rule!r} is unknown: choose balanced or random.")
    return allowed.to(torch.int64)[pick]


@dataclass(frozen=True, eq=False)
class SampleSet:
    """An endless, indexed set of samples.

    Attributes:
        network: with its guidance wrapped around it, in evaluation mode.
        sampler: from noise to data.
        data: gives the shape, the classes and ``decode``.
        seed: of noise and labels.
        labels: rule of :func:`labels_of`.
        classes: restriction of the classes, None for all.
        precision: ``fp32``; ``bf16`` for autocast of the network; ``fp64`` for a network in
            double precision, whose images do not depend on the batch size by a single bit.
            Decoding is always float32.
        device: where the network is.
        counter: counts the network's rows.
    """

    network: Network
    sampler: Sampler
    data: Dataset
    seed: int = 0
    labels: LabelRule = "balanced"
    classes: tuple[int, ...] | None = None
    precision: Precision = "fp32"
    device: torch.device | str = "cpu"
    counter: RowCounter | None = None

    def with_steps(self, steps: int) -> "SampleSet":
        """The same samples with another number of steps."""
        if steps < 1:
            raise ValueError(f"the number of steps is {steps}: it must be at least 1.")
        return replace(self, sampler=replace(self.sampler, steps=steps))

    def labels_at(self, indices: Tensor) -> Tensor:
        """Classes (B,) int64 of the samples ``indices``."""
        return labels_of(indices, self.data.num_classes, self.labels, self.seed, self.classes)

    @torch.no_grad()
    def latents(self, indices: Tensor) -> Tensor:
        """Samples (B, C, H, W) float32 in the network's space, on the device."""
        random = RowRandom.for_samples(self.seed, indices.cpu())
        noise = random.normal(*self.data.shape)
        if self.precision == "fp64":
            noise = noise.double()
        noise = noise.to(self.device)
        random.keys = random.keys.to(self.device)
        y = self.labels_at(indices.cpu()).to(self.device)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.sampler(self.network, noise, y, random).float()

    @torch.no_grad()
    def images(self, indices: Tensor) -> Tensor:
        """Images (B, channels, height, width) uint8 of the samples ``indices``, on the CPU."""
        return self.data.decode(self.latents(indices)).cpu()
