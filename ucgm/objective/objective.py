"""UCGM-T: one objective, of which the continuous-time methods are settings.

A step is two calls.  :meth:`Objective.draw` makes all random numbers; :meth:`Objective.terms` is
a pure function of them, so every formula can be tested with given numbers:

    x_t   = alpha x + sigma z              transport
    F     = network(x_t, t, y[, s])        the pass with gradient
    F*    = field at (x_t, t)              fields: data, guidance in training, teachers
    F_tgt = F* or F - c phi(k G)           residual: anchor m, tangent, step rule
    loss  = mean w rho(F - F_tgt)          losses, and the additive terms; those of sets of samples
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ucgm.objective.additions import (
    flow_anchor_term,
    matching_term,
    own_samples,
    second_head_term,
    terminal_velocity,
    transported,
)
from ucgm.objective.anchors import anchor
from ucgm.objective.destinations import Data, Destination, SameTime, TwinFlowSplit
from ucgm.objective.draw import Draw, HostTimes, Terms, Twin
from ucgm.objective.field_rules import sources_of, teachers_of
from ucgm.objective.fields import field_at, own_velocity
from ucgm.objective.losses import LogVariance, per_sample_loss, weighted_mean
from ucgm.objective.passes import Heads, Network, Passes
from ucgm.objective.residual import consistency_target
from ucgm.objective.settings import ObjectiveSettings
from ucgm.runtime.randomness import RowRandom, as_random
from ucgm.transport import expand

_SAME_TIME, _TO_DATA = SameTime(), Data()


def scale_of_field(guidance: Tensor | None, t: Tensor) -> Tensor | None:
    """(B,) guidance scales at t (B,): those of (B,), or of (B, 3), 1 outside their intervals."""
    if guidance is None or guidance.ndim == 1:
        return guidance
    scale, low, high = guidance.unbind(1)
    return torch.where((low <= t) & (t <= high), scale, 1.0)


@dataclass(frozen=True)
class Objective(ObjectiveSettings):
    """A training objective; it is its own configuration (see :func:`ucgm.preset`)."""

    @property
    def diffusion(self) -> bool:
        """Whether F_tgt is the field itself on every row."""
        return self.anchor_schedule == "constant" and self.consistency_ratio == 0.0

    @property
    def needs_teacher(self) -> bool:
        """Whether :meth:`terms` needs a frozen teacher."""
        return self.teachers > 0

    @property
    def teachers(self) -> int:
        """How many teachers :meth:`terms` needs at least."""
        if not self.residual_weight:
            return 0
        second = self.residual_network == "teacher" and not self.diffusion
        return max(teachers_of(self), int(second))

    @property
    def needs_target(self) -> bool:
        """Whether :meth:`terms` needs an EMA (target) network."""
        second = self.residual_network == "target" and not self.diffusion
        return bool(self.residual_weight) and (second or "target" in sources_of(self))

    @property
    def network_inputs(self) -> dict[str, Any]:
        """Settings that a network needs beside those of a plain one, such as a second time."""
        needed = {
            "second_time": self.two_time,
            "guidance_input": self.guidance_range is not None,
            "guidance_interval": self.guidance_interval,
            "velocity_blocks": 2 if self.velocity_head else 0,
            "exit_layer": 1 if self.exit_head else 0,
        }
        return {name: value for name, value in needed.items() if value}

    def _destination(self) -> Destination:
        return self.destination or (_SAME_TIME if self.diffusion else _TO_DATA)

    def draw(
        self,
        x: Tensor,
        y: Tensor | None,
        null_label: int | None = None,
        generator: RowRandom | torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Draw:
        """All randomness of a step.

        Args:
            x: (B, C, H, W) data; not modified.
            y: (B,) int64 labels, or None without classes; not modified.
            null_label: the label that stands for "no class"; None: no label is dropped.
            generator: row keys (the same noise however the batch is cut), a torch generator, or
                None for the global one.
            progress: share of the run that is done, for the anchors that move.
        """
        destination = self._destination()
        keys = as_random(generator, len(x), torch.device("cpu")).keys
        numbers = RowRandom(keys.cpu(), stream=1)
        noise = RowRandom(keys.to(x.device, non_blocking=True))
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        t = self.time_law.quantile(numbers.uniform(dtype=torch.float64), self.transport)
        dropped = torch.zeros(len(x), dtype=torch.bool)
        if y is not None and null_label is not None:
            dropped = numbers.uniform() < self.label_dropout
        u = numbers.uniform(3, dtype=torch.float64)
        t, s = destination.pair(t, u, self.time_law, self.transport)
        t, s = t.to(dtype), s.to(dtype)
        m = anchor(self, t, s, progress)
        if self.dropped_rows == "field":
            dropped &= m == s
        elif self.dropped_rows == "inside":
            low, high = self.enhancement_interval
            dropped &= (t > low) & (t < high)
        if y is not None and null_label is not None:
            y = torch.where(dropped.to(x.device, non_blocking=True), null_label, y)
        guidance = self._guidance(numbers, s == t, dropped, dtype)
        flow_time = None
        if self.flow_anchor_law is not None:
            uniform = numbers.uniform(dtype=torch.float64)
            flow_time = self.flow_anchor_law.quantile(uniform, self.transport).to(dtype)
        host = HostTimes(t, s, m, dropped, scale_of_field(guidance, t), flow_time)
        z = noise.normal(*x.shape[1:], dtype=dtype)
        if self.coupling == "optimal_transport":
            z = transported(x, z)
        twin = None
        if isinstance(destination, TwinFlowSplit):
            source, again = (noise.normal(*x.shape[1:], dtype=dtype) for _ in range(2))
            twin = Twin(destination.part(u), source, again, noise.uniform(dtype=dtype))
        t, s, m, dropped = (v.to(x.device, non_blocking=True) for v in host[:4])
        guidance, flow_time = (
            None if v is None else v.to(x.device, non_blocking=True) for v in (guidance, flow_time)
        )
        return Draw(x, y, z, t, s, dropped, null_label, m, guidance, flow_time, twin, host)

    def _guidance(
        self, numbers: RowRandom, same_time: Tensor, dropped: Tensor, dtype: torch.dtype
    ) -> Tensor | None:
        """(B,) guidance scales, or (B, 3) with the ends of their intervals; None: none is drawn."""
        if self.guidance_range is None:
            return None
        low, high = self.guidance_range
        scale = low * (high / low) ** numbers.uniform(dtype=torch.float64)
        if self.over_scale:
            scale = torch.where(dropped, 1.0, scale)
        if not self.guidance_interval:
            return scale.to(dtype)
        ends = numbers.uniform(2, dtype=torch.float64) * 0.5 + torch.tensor([0.0, 0.5])
        ends = torch.where(same_time[:, None], torch.tensor([0.0, 1.0], dtype=ends.dtype), ends)
        return torch.cat((scale[:, None], ends), 1).to(dtype)

    def complete(self, draw: Draw) -> Draw:
        """A draw made by hand, with the destinations and anchors that the settings prescribe."""
        if draw.host is not None:
            return draw
        same_time = isinstance(self._destination(), SameTime)
        s = draw.s if draw.s is not None else draw.t if same_time else torch.zeros_like(draw.t)
        m = draw.m if draw.m is not None else anchor(self, draw.t, s, 1.0)
        dropped = draw.dropped if draw.dropped is not None else torch.zeros_like(draw.t).bool()
        t, guidance, flow_time = (
            None if v is None else v.cpu() for v in (draw.t, draw.guidance, draw.flow_time)
        )
        assert t is not None
        scale = scale_of_field(guidance, t)
        host = HostTimes(t, s.cpu(), m.cpu(), dropped.cpu(), scale, flow_time)
        return replace(draw, s=s, m=m, dropped=dropped, host=host)

    def terms(
        self,
        network: Network,
        draw: Draw,
        *,
        target: Network | None = None,
        teacher: Network | list[Network] | None = None,
        log_variance: LogVariance | None = None,
        alignment: Callable[[], Tensor] | None = None,
        sets: Callable[[Network, Draw], Tensor] | None = None,
        progress: float = 1.0,
    ) -> Terms:
        """The loss of a draw: of its rows, with per-sample losses (B,), and of the set of samples.

        Args:
            network: the network being trained; may be wrapped for data-parallel training.
            draw: the random numbers; no tensor of it is modified.
            target: the EMA network, where one is used (None: the network itself).
            teacher: the frozen teacher or teachers of the ``teacher`` fields.
            log_variance: the module of a learned variance.
            alignment: gives the term of representation alignment, ().
            sets: the weighted losses of ``objective.sets``, of the network's samples.
            progress: share of the run that is done, for the tangent warm-up.
        """
        if self.sets and sets is None:
            raise ValueError("objective.sets need the losses that a training makes of them")
        if not self.residual_weight:
            assert sets is not None
            none = torch.full_like(draw.t, torch.nan)  # rows have no losses
            return Terms(sets(network, draw), none, draw.z, draw.x)
        more = target, teacher, log_variance, alignment
        terms = self._residual_terms(network, draw, *more, progress)
        if not self.sets or sets is None:
            return terms
        return terms._replace(loss=self.residual_weight * terms.loss + sets(network, draw))

    def _residual_terms(
        self,
        network: Network,
        draw: Draw,
        target: Network | None,
        teacher: Network | list[Network] | None,
        log_variance: LogVariance | None,
        alignment: Callable[[], Tensor] | None,
        progress: float,
    ) -> Terms:
        """All terms but the sets; see :meth:`terms`."""
        draw, diffusion = self.complete(draw), self.diffusion
        passes = Passes(draw, self.two_time, network, target, teacher)
        if draw.twin is not None:
            draw = own_samples(self, passes, draw)
        assert draw.host is not None and draw.s is not None and draw.m is not None
        x_t = self.transport.mix(draw.x, draw.z, draw.t)
        here, at_destination, at_t, second = (self, passes, draw, x_t), None, None, None
        if self.terminal:
            prediction, at_destination = terminal_velocity(*here)
        else:
            twice = self.flow_anchor > 0 and self.flow_anchor_law is None
            heads: Heads = "both" if self.velocity_head or self.exit_head else "map"
            prediction, at_t, second = passes.gradient(x_t, draw.t, draw.y, draw.s, twice, heads)
        with torch.no_grad():
            known = prediction.detach()
            velocity = own_velocity(*here) if self.own_velocity else None
            at_same_time = second.detach() if self.velocity_head and second is not None else known
            field = field_at(*here, at_same_time, velocity, progress)
            if at_destination is not None:
                f_target = torch.where(expand(draw.s < draw.t, field), at_destination, field)
            elif diffusion:
                f_target = field
            else:
                f_target = consistency_target(*here, known, field, velocity, progress)
        per_sample = per_sample_loss(self, prediction, f_target)
        loss = weighted_mean(self, per_sample, draw, log_variance)
        if self.flow_anchor:
            at_same = flow_anchor_term(self, passes, draw, at_t, field, progress)
            loss = loss + self.flow_anchor * at_same
        if second is not None:
            loss = loss + second_head_term(self, second, known, field, f_target)
        if self.matching:
            loss = loss + self.matching * matching_term(*here, prediction)
        if self.alignment:
            if alignment is None:
                raise ValueError("objective.alignment needs an Alignment module")
            loss = loss + self.alignment * alignment()
        return Terms(loss, per_sample, prediction, f_target)
