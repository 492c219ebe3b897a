"""Guidance: wrappers around a network that are networks themselves.

All of them extrapolate away from a worse prediction F_bad, inside an interval of times alone
(arXiv 2404.07724):

    F = F_bad + scale (F_good - F_bad)

    classifier-free  F_bad: the same network without the label         (arXiv 2207.12598)
    autoguidance     F_bad: a weaker network with the same label       (arXiv 2406.02507)
    internal         F_bad: the network's own exit head, in the same pass (arXiv 2512.24176)
    input            the scale is an input of a network trained with it: one pass; so is the
                     interval of a network built with it (arXiv 2512.02012)

The rule is affine in F, so guiding F, x_hat, z_hat or the velocity is the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ucgm.runtime.values import Count, Interval, Number, check_values

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Guidance:
    """Settings of guidance in sampling."""

    scale: Number = 1.0
    """weight of the better prediction; 1 is off and costs nothing."""
    interval: Interval = (0.0, 1.0)
    """closed interval of t in which guidance is on."""
    channels: Count | None = None
    """guide the first channels alone, as DiT's and SiT's code does; None: all."""
    kind: Literal["classifier_free", "auto", "internal", "input"] = "classifier_free"
    """classifier_free; auto: away from the weaker network of the run `guide`; internal: away from
    the network's exit head; input: the scale is an input of the network."""
    guide: str | None = None
    """run folder of the weaker network of autoguidance."""

    def __post_init__(self) -> None:
        """Refuse kinds that do not exist and settings that they do not have."""
        check_values(self, "guidance")
        if self.kind == "input" and self.channels is not None:
            raise ValueError("guidance.channels has no meaning for guidance.kind input")
        if self.kind == "input" and self.scale < 1.0:
            raise ValueError(f"guidance.scale of kind input must be at least 1, got {self.scale}")

    def apply(
        self, network: Network, null_label: int | None, guide: Network | None = None
    ) -> Network:
        """``network`` under this guidance; the network itself when the scale is 1.

        Args:
            network: the network to guide.
            null_label: label of the unconditional pass; None or 0 without classes.
            guide: the weaker network of ``kind: auto``, in the same convention.
        """
        if self.scale == 1.0:
            return network
        if self.kind == "input":
            return GuidanceInput(network, self.scale, self.interval)
        if self.kind == "auto":
            if guide is None:
                raise ValueError(
                    "guidance.kind auto needs a weaker network: name its run in guidance.guide"
                )
            return Autoguided(network, guide, self.scale, self.interval, self.channels)
        if self.kind == "internal":
            return InternallyGuided(network, self.scale, self.interval, self.channels)
        if not null_label:
            raise ValueError("guidance needs a model with classes; set guidance.scale to 1.0")
        return Guided(network, self.scale, self.interval, null_label, self.channels)


class IntervalGuidance:
    """A network under guidance inside an interval of times; the base of all kinds.

    ``scale``, ``interval`` and ``channels`` are those of :class:`Guidance`.
    """

    network: Network
    scale: float
    interval: tuple[float, float]
    channels: int | None = None

    def __post_init__(self) -> None:
        """Refuse what :class:`Guidance` refuses."""
        Guidance(self.scale, self.interval, self.channels)

    @property
    def num_classes(self) -> int | None:
        """Classes of the network, where it says."""
        return getattr(self.network, "num_classes", None)

    @property
    def cut(self) -> tuple[float, float]:
        """The interval outside of which the network is called without guidance."""
        return self.interval

    def at(self, t: float) -> Network:
        """The network to call when all rows are at time ``t``: no batch is doubled in vain."""
        low, high = self.cut
        if self.scale != 1.0 and low <= t <= high:
            return self.guided
        inner = getattr(self.network, "at", None)
        return inner(t) if inner else self.network

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        """Guided prediction (B, ...) at x (B, ...), t, y, s (B,); t may lie in and outside."""
        low, high = self.cut
        inside = (t >= low) & (t <= high)
        if self.scale == 1.0 or not bool(inside.any()):
            return call(self.network, x, t, y, s)
        if bool(inside.all()):
            return self.guided(x, t, y, s)
        result = call(self.network, x, t, y, s)
        part = self.guided(x[inside], t[inside], y[inside], None if s is None else s[inside])
        return result.index_put((inside.nonzero().flatten(),), part)

    def guided(self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        """The prediction (B, ...) inside the interval, at x (B, ...), t, y, s (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must define guided")

    def extrapolate(self, bad: Tensor, good: Tensor) -> Tensor:
        """bad + scale (good - bad), all (B, C, ...), in the channels that are guided."""
        guided, channels = torch.lerp(bad, good, self.scale), self.channels
        if channels is not None and channels < guided.shape[1]:
            guided = torch.cat((guided[:, :channels], good[:, channels:]), dim=1)
        return guided


@dataclass(eq=False, repr=False)
class Guided(IntervalGuidance):
    """A network under classifier-free guidance: one call with twice the rows."""

    network: Network
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    null_label: int = 0
    """label of the unconditional pass."""
    channels: int | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes: the null label comes after the last."""
        return self.null_label

    def guided(self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        """F_null + scale (F_label - F_null)."""
        labels = torch.cat((y, torch.full_like(y, self.null_label)))
        second = None if s is None else torch.cat((s, s))
        both = call(self.network, torch.cat((x, x)), torch.cat((t, t)), labels, second)
        good, bad = both.chunk(2)
        return self.extrapolate(bad, good)


@dataclass(eq=False, repr=False)
class Autoguided(IntervalGuidance):
    """A network guided away from a weaker one (smaller, or trained for less time)."""

    network: Network
    guide: Network
    """the weaker network, in the same convention."""
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None

    def guided(self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        """F_guide + scale (F - F_guide)."""
        return self.extrapolate(call(self.guide, x, t, y, s), call(self.network, x, t, y, s))


@dataclass(eq=False, repr=False)
class InternallyGuided(IntervalGuidance):
    """A network guided away from its own exit head: one call with the same rows."""

    network: Network
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None

    def __post_init__(self) -> None:
        """Ask for the exit head."""
        super().__post_init__()
        if not getattr(self.network, "exits", False):
            raise ValueError(
                "guidance.kind internal needs a network with an exit head: train it with "
                "objective.exit_head 0.5, or choose another guidance.kind"
            )

    def guided(self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        """F_exit + scale (F - F_exit)."""
        good, bad = call(self.network, x, t, y, s, heads="both")
        return self.extrapolate(bad, good)


@dataclass(eq=False, repr=False)
class GuidanceInput(IntervalGuidance):
    """A network that was trained with the guidance scale as an input (iMF, guidance distillation).

    It takes the keyword ``guidance``, scales (B,) >= 1; outside the interval none is given, which
    means 1.  One that has ``guidance_interval`` takes (B, 3), the scale and its interval, at every
    time.
    """

    network: Network
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Ask the network what it is told."""
        super().__post_init__()
        self.told = bool(getattr(self.network, "guidance_interval", False))

    @property
    def cut(self) -> tuple[float, float]:
        """All times, where the network is told the interval."""
        return (0.0, 1.0) if self.told else self.interval

    def guided(self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        """The prediction at the scale."""
        numbers = [torch.full_like(t, v) for v in (self.scale, *self.interval)]
        guidance = torch.stack(numbers, dim=1) if self.told else numbers[0]
        return call(self.network, x, t, y, s, guidance=guidance)


class Watched:
    """A ``network`` whose states x (B, ...) go through ``see`` first: to be counted, or cast."""

    def __init__(self, network: Network, see: Callable[[Tensor], Tensor]) -> None:
        self.network, self.see = network, see
        for name in ("num_classes", "guidance_interval", "exits"):  # what is asked of a network
            setattr(self, name, getattr(network, name, None))

    def __call__(
        self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None, **more: Any
    ) -> Tensor:
        """The prediction (B, ...) at x (B, ...), t, y, s (B,)."""
        return call(self.network, self.see(x), t, y, s, **more)


def call(
    network: Network, x: Tensor, t: Tensor, y: Tensor | None, s: Tensor | None, **more: Any
) -> Tensor:
    """The prediction at x (B, ...), t, y (B,); s (B,) is passed to networks of two times only."""
    return network(x, t, y, **more) if s is None else network(x, t, y, s, **more)
