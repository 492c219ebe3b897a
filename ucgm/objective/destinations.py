"""Laws of destination times s <= t, given t."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ucgm.objective.times import LogitNormal, TimeDistribution
from ucgm.runtime.values import Count, Range, Share, check_values
from ucgm.transport import Transport

Pair = tuple[Tensor, Tensor]
"""Times (t, s) of one shape."""


@dataclass(frozen=True)
class Destination:
    """Base of the laws of the destination time s <= t: subclasses give :meth:`pair`."""

    smallest: ClassVar[float] = 0.0
    """jumps as short as this learn the field: their anchor is m = s."""

    def __post_init__(self) -> None:
        check_values(self)

    def pair(self, t: Tensor, u: Tensor, law: TimeDistribution, transport: Transport) -> Pair:
        """(t, s) of the shape of ``t``, which may be replaced.

        Args:
            t: (B,) times of the law.
            u: (B, 3) uniform numbers of the row.
            law: the law of t.
            transport: the path.
        """
        raise NotImplementedError(f"{type(self).__name__} must define pair(t, u, law, transport)")


@dataclass(frozen=True)
class SameTime(Destination):
    """s = t: diffusion and flow matching."""

    def pair(self, t: Tensor, u: Tensor, law: TimeDistribution, transport: Transport) -> Pair:
        """(t, t)."""
        return t, t


@dataclass(frozen=True)
class Data(Destination):
    """s = 0: consistency models."""

    def pair(self, t: Tensor, u: Tensor, law: TimeDistribution, transport: Transport) -> Pair:
        """(t, 0)."""
        return t, torch.zeros_like(t)


@dataclass(frozen=True)
class GridStep(Destination):
    """Steps of a sampler: t is moved up to the grid k / steps, s is the point before it.

    With ``consistency_ratio: 0.5``, ``step_rule: exact`` and a teacher as field and as
    ``residual_network`` a step learns two of the teacher's: progressive distillation (arXiv
    2202.00512, algorithm 2).
    """

    steps: Count = 4
    """steps of the sampler that is learned."""

    def pair(self, t: Tensor, u: Tensor, law: TimeDistribution, transport: Transport) -> Pair:
        """(k / steps, (k - 1) / steps)."""
        k = (t * self.steps).ceil().clamp(1, self.steps)
        return k / self.steps, (k - 1) / self.steps


@dataclass(frozen=True)
class Below(Destination):
    """s ~ U(0, t): flow maps."""

    def pair(self, t: Tensor, u: Tensor, law: TimeDistribution, transport: Transport) -> Pair:
        """(t, u t)."""
        return t, u[:, 0] * t


@dataclass(frozen=True)
class SortedPair(Destination):
    """Two draws of the law, sorted; on a share of the rows s = t (MeanFlow, arXiv 2505.13447)."""

    equal: Share = 0.75
    """share of the rows with s = t."""
    single: bool = False
    """these rows take one draw of the law, and not the later of two (AlphaFlow)."""
    to_data: Share = 0.0
    """share of the rows with s = 0 (TiM)."""

    def pair(self, t: Tensor, u: Tensor, law: TimeDistribution, transport: Transport) -> Pair:
        """(max, min) of two draws, (max, max), or with ``single`` (t, t), or (max, 0)."""
        other = law.quantile(u[:, 0], transport)
        late, early = torch.maximum(t, other), torch.minimum(t, other)
        equal = u[:, 1] < self.equal
        late = torch.where(equal, t, late) if self.single else late
        early = torch.where(u[:, 1] >= 1.0 - self.to_data, torch.zeros_like(early), early)
        return late, torch.where(equal, late, early)


@dataclass(frozen=True)
class GapFirst(Destination):
    """The gap t - s first, then s, of its own law below 1 - gap (TVM, arXiv 2511.19797, code)."""

    gap: LogitNormal = LogitNormal(-0.8, 1.0)
    """law of t - s."""
    start: LogitNormal = LogitNormal(-0.4, 1.0)
    """law of s, cut off at 1 - gap."""

    def pair(self, t: Tensor, u: Tensor, law: TimeDistribution, transport: Transport) -> Pair:
        """(s + gap, s)."""
        gap = self.gap.quantile(u[:, 0], transport)
        room = torch.special.ndtr((torch.logit(1.0 - gap) - self.start.mean) / self.start.std)
        s = self.start.quantile(u[:, 1] * room, transport)
        return (s + gap).clamp(max=1.0), s


@dataclass(frozen=True)
class Apart(Destination):
    """t and s of laws of their own, or s = t (SoFlow, arXiv 2512.15657; decoupled MeanFlow)."""

    equal: Share = 0.75
    """share of the rows with s = t."""
    late: LogitNormal = LogitNormal(0.2, 0.8)
    """law of t on the others."""
    early: LogitNormal = LogitNormal(-1.0, 0.8)
    """law of s on the others."""
    swap: bool = False
    """swap the two where s would come after t; or else s is 1e-4 before t there."""

    def pair(self, t: Tensor, u: Tensor, law: TimeDistribution, transport: Transport) -> Pair:
        """(late, early) in that order, or (t, t)."""
        late = self.late.quantile(u[:, 0], transport)
        early = self.early.quantile(u[:, 2], transport)
        if self.swap:
            late, early = torch.maximum(late, early), torch.minimum(late, early)
        else:
            late = late.clamp(min=1e-4)
            early = torch.minimum(early, late - 1e-4)
        equal = u[:, 1] < self.equal
        return torch.where(equal, t, late), torch.where(equal, t, early)


@dataclass(frozen=True)
class Dyadic(Destination):
    """Jumps of 2^-k on their own grid on a share of the rows (Shortcut, arXiv 2410.12557)."""

    share: Share = 0.25
    """share of the rows that jump; the others have s = t."""
    levels: Annotated[int, Range(1, 20)] = 7
    """jumps of 1, 1/2, ..., 2^-(levels - 1)."""
    on_grid: bool = False
    """the others are on the grid as well: they jump by its step 2^-levels."""

    @property
    def smallest(self) -> float:  # pyright: ignore
        """The step of the grid, where rows are on it."""
        return 2.0**-self.levels if self.on_grid else 0.0

    def pair(self, t: Tensor, u: Tensor, law: TimeDistribution, transport: Transport) -> Pair:
        """((j + 1) d, j d) with d = 2^-k, k and j uniform; or (t, t), or on the grid (t, t - d)."""
        size = torch.exp2(-(u[:, 0] * self.levels).floor())
        start = (u[:, 2] / size).floor() * size
        jumps, later = u[:, 1] < self.share, t
        if self.on_grid:
            t = (t / self.smallest).ceil().clamp(min=1.0) * self.smallest
            later = t - self.smallest
        return torch.where(jumps, start + size, t), torch.where(jumps, start, later)


@dataclass(frozen=True)
class TwinFlowSplit(Destination):
    """The four parts of a TwinFlow batch, each a quarter of the rows (arXiv 2512.05150).

    One step from noise to data (t = 1, s = 0), short jumps (s within 5 % of t), any jump
    (s ~ U(0, t)), and the network's own samples at negative time (s = t).
    """

    share: ClassVar[float] = 0.25
    """expected share of the rows in each part."""

    def pair(self, t: Tensor, u: Tensor, law: TimeDistribution, transport: Transport) -> Pair:
        """Pairs by the part that ``part`` gives the row."""
        part = self.part(u)
        anywhere = (1.0 - u[:, 0]) * t
        s = torch.stack((torch.zeros_like(t), (1.0 - 0.05 * u[:, 0]) * t, anywhere, t))
        t = torch.where(part == 0, torch.ones_like(t), t)
        return t, s.gather(0, part[None])[0]

    @staticmethod
    def part(u: Tensor) -> Tensor:
        """(B,) int64: 0 one step, 1 short, 2 any, 3 own samples."""
        return (u[:, 1] * 4).long()
