"""Guidance: wrappers around a network that are networks themselves.

Classifier-free guidance (arXiv 2207.12598), limited to an interval of times (arXiv 2404.07724):

    F = F_null + scale (F_cond - F_null)

The rule is affine in F, so guiding F, x_hat, z_hat or the velocity is the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Guidance:
    """Settings of guidance in sampling."""

    scale: float = 1.0
    """weight of the conditional prediction; 1 is off and costs nothing."""
    interval: tuple[float, float] = (0.0, 1.0)
    """closed interval of t in which guidance is on."""
    channels: int | None = None
    """guide the first channels alone, as DiT's and SiT's code does; None: all."""

    def __post_init__(self) -> None:
        """Refuse intervals that are not part of [0, 1]."""
        low, high = self.interval
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"guidance.interval must be rising times in [0, 1]: {self.interval}")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guidance.channels must be at least 1 or null, got {self.channels}")

    def apply(self, network: Network, null_label: int | None) -> Network:
        """``network`` under this guidance; the network itself when the scale is 1."""
        if self.scale == 1.0:
            return network
        if null_label is None:
            raise ValueError("guidance needs a model with classes; set guidance.scale to 1.0")
        return Guided(network, self.scale, self.interval, null_label, self.channels)


class Guided:
    """A network under classifier-free guidance.

    Args:
        network: the network to guide.
        scale: weight of the conditional prediction; 1.0 is off.
        interval: closed interval of t in which guidance is on.
        null_label: the label of the unconditional pass.
        channels: guide the first channels alone; None: all.
    """

    def __init__(
        self,
        network: Network,
        scale: float,
        interval: tuple[float, float] = (0.0, 1.0),
        null_label: int = 0,
        channels: int | None = None,
    ) -> None:
        self.network = network
        self.settings = Guidance(scale, tuple(interval), channels)
        self.null_label = null_label

    def at(self, t: float) -> Network:
        """The network to call when all rows are at time ``t``: no batch is doubled in vain."""
        low, high = self.settings.interval
        on = self.settings.scale != 1.0 and low <= t <= high
        return self._guided if on else self.network

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        """Guided prediction at (B,) times; rows may lie on both sides of the interval."""
        low, high = self.settings.interval
        inside = (t >= low) & (t <= high)
        if self.settings.scale == 1.0 or not bool(inside.any()):
            return call(self.network, x, t, y, s)
        if bool(inside.all()):
            return self._guided(x, t, y, s)
        result = call(self.network, x, t, y, s)
        part = self._guided(x[inside], t[inside], y[inside], None if s is None else s[inside])
        return result.index_put((inside.nonzero().flatten(),), part)

    def _guided(self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        labels = torch.cat((y, torch.full_like(y, self.null_label)))
        second = None if s is None else torch.cat((s, s))
        both = call(self.network, torch.cat((x, x)), torch.cat((t, t)), labels, second)
        cond, null = both.chunk(2)
        guided = torch.lerp(null, cond, self.settings.scale)
        channels = self.settings.channels
        if channels is not None and channels < guided.shape[1]:
            guided = torch.cat((guided[:, :channels], cond[:, channels:]), dim=1)
        return guided


def call(network: Network, x: Tensor, t: Tensor, y: Tensor | None, s: Tensor | None) -> Tensor:
    """Call a network; a second time is passed only where there is one."""
    return network(x, t, y) if s is None else network(x, t, y, s)
