"""UCGM-T: one objective, of which the continuous-time methods are settings.

A step is two calls.  :meth:`Objective.draw` makes all random numbers; :meth:`Objective.terms` is
a pure function of them, so every formula can be tested with given numbers:

    x_t   = alpha x + sigma z              transport
    F     = network(x_t, t, y[, s])        the pass with gradient
    F*    = field at (x_t, t)              fields: data, guidance in training, teachers
    F_tgt = F* or F - c phi(k G)           residual: anchor m, tangent, step rule
    loss  = mean w rho(F - F_tgt)          losses, and the additive terms
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ucgm.objective.additions import (
    Alignment,
    flow_anchor,
    matching_term,
    own_samples,
    terminal_velocity,
    transported,
)
from ucgm.objective.anchors import anchor
from ucgm.objective.draw import Draw, HostTimes, Terms, Twin
from ucgm.objective.fields import field_at, sources_of
from ucgm.objective.losses import LogVariance, mse_and_cosine, per_sample_loss, time_weight
from ucgm.objective.passes import Network, Passes
from ucgm.objective.residual import consistency_target, own_velocity
from ucgm.objective.settings import ObjectiveSettings
from ucgm.objective.times import Data, Destination, SameTime, TwinFlowSplit
from ucgm.runtime.randomness import RowRandom, as_random
from ucgm.transport import expand


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
        return "teacher" in sources_of(self)

    @property
    def needs_target(self) -> bool:
        """Whether :meth:`terms` needs an EMA (target) network."""
        second = self.residual_network == "target" and not self.diffusion
        return second or "target" in sources_of(self)

    def _destination(self) -> Destination:
        return self.destination or (SameTime() if self.diffusion else Data())

    def _anchor(self, t: Tensor, s: Tensor, progress: float) -> Tensor:
        m = anchor(self.anchor_schedule, self.consistency_ratio, self.transport, t, s, progress)
        if self.tangent == "forward":  # the limit by a step of its own
            m = torch.where(m == t, torch.maximum(t - self.tangent_step, s), m)
        return m

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
        keys = as_random(generator, len(x), torch.device("cpu")).keys
        numbers = RowRandom(keys.cpu(), stream=1)
        noise = RowRandom(keys.to(x.device, non_blocking=True))
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        t = self.time_law.quantile(numbers.uniform(dtype=torch.float64), self.transport)
        dropped = torch.zeros(len(x), dtype=torch.bool)
        if y is not None and null_label is not None:
            dropped = numbers.uniform() < self.label_dropout
            y = torch.where(dropped.to(y.device, non_blocking=True), null_label, y)
        u = numbers.uniform(3, dtype=torch.float64)
        t, s = self._destination().pair(t, u, self.time_law, self.transport)
        t, s = t.to(dtype), s.to(dtype)
        guidance = None
        if self.guidance_range is not None:
            low, high = self.guidance_range
            guidance = (low * (high / low) ** numbers.uniform(dtype=torch.float64)).to(dtype)
        host = HostTimes(t, s, self._anchor(t, s, progress), dropped, guidance)
        z = noise.normal(*x.shape[1:], dtype=dtype)
        if self.coupling == "optimal_transport":
            z = transported(x, z)
        twin = None
        if isinstance(self.destination, TwinFlowSplit):
            source, again = (noise.normal(*x.shape[1:], dtype=dtype) for _ in range(2))
            twin = Twin(TwinFlowSplit.part(u), source, again, noise.uniform(dtype=dtype))
        t, s, m, dropped = (v.to(x.device, non_blocking=True) for v in host[:4])
        if guidance is not None:
            guidance = guidance.to(x.device, non_blocking=True)
        return Draw(x, y, z, t, s, dropped, null_label, m, guidance, twin, host)

    def complete(self, draw: Draw) -> Draw:
        """A draw made by hand, with the destinations and anchors that the settings prescribe."""
        present = isinstance(self._destination(), SameTime)
        s = draw.s if draw.s is not None else draw.t if present else torch.zeros_like(draw.t)
        m = draw.m if draw.m is not None else self._anchor(draw.t, s, 1.0)
        return draw.completed(s, m)

    def terms(
        self,
        network: Network,
        draw: Draw,
        *,
        target: Network | None = None,
        teacher: Network | list[Network] | None = None,
        log_variance: LogVariance | None = None,
        alignment: Alignment | None = None,
        progress: float = 1.0,
    ) -> Terms:
        """The loss of a draw.

        Args:
            network: the network being trained; may be wrapped for data-parallel training.
            draw: the random numbers; no tensor of it is modified.
            target: the EMA network, where one is used (None: the network itself).
            teacher: the frozen teacher or teachers of the ``teacher`` fields.
            log_variance: the module of a learned variance.
            alignment: the module of representation alignment.
            progress: share of the run that is done, for the tangent warm-up.
        """
        heads = (log_variance, alignment)
        return self.terms_and_passes(network, draw, target, teacher, heads, progress)[0]

    def terms_and_passes(
        self,
        network: Network,
        draw: Draw,
        target: Network | None,
        teacher: Network | list[Network] | None,
        heads: tuple[LogVariance | None, Alignment | None],
        progress: float,
    ) -> tuple[Terms, Passes]:
        """:meth:`terms`, and the record of the passes that were made."""
        log_variance, alignment = heads
        if self.needs_teacher and not teacher:
            raise ValueError(
                f"objective.field = {self.field!r} needs a teacher: start from a trained run"
            )
        networks = {"online": network, "target": target or network, "teacher": teacher}
        passes = Passes(network, self.complete(draw), self.two_time)
        if passes.draw.twin is not None:
            passes.draw = own_samples(self, passes)
        draw = passes.draw
        assert draw.s is not None and draw.m is not None
        x_t = self.transport.mix(draw.x, draw.z, draw.t)
        data = self.transport.target(draw.x, draw.z, draw.t)
        second, at_s = networks[self.residual_network], None
        if self.terminal:
            (prediction, at_s), at_t = terminal_velocity(self, passes, second, x_t), None
        else:
            prediction, at_t = flow_anchor(self, passes, x_t)
        with torch.no_grad():
            if self.own_velocity:
                passes.velocity = own_velocity(passes, x_t)
            field = field_at(self, passes, x_t, data, prediction.detach(), networks)
            wanted = field
            if at_s is not None:
                wanted = torch.where(expand(draw.s < draw.t, field), at_s, field)
            elif not self.diffusion:
                wanted = consistency_target(
                    self, passes, second, x_t, prediction.detach(), field, progress
                )
        per_sample = per_sample_loss(
            prediction,
            wanted,
            (self.loss_power, self.loss_epsilon, self.loss_sum),
            self.pseudo_huber_c,
            self.cosine_floor if self.cosine_loss else None,
        )
        loss = self._weighted_mean(per_sample, draw, log_variance)
        if at_t is not None:
            loss = loss + self.flow_anchor * mse_and_cosine(at_t, field, self.cosine_floor).mean()
        if self.matching:
            loss = loss + self.matching * matching_term(self, passes, x_t, prediction)
        if self.alignment:
            if alignment is None:
                raise ValueError("objective.alignment needs an Alignment module")
            loss = loss + self.alignment * alignment.loss()
        return Terms(loss, per_sample, prediction, wanted), passes

    def _weighted_mean(
        self, per_sample: Tensor, draw: Draw, log_variance: LogVariance | None
    ) -> Tensor:
        assert draw.s is not None and draw.m is not None
        rows = time_weight(self.time_weight, self.transport, draw.t, draw.s, draw.m) * per_sample
        if self.log_variance:
            if log_variance is None:
                raise ValueError("objective.log_variance needs a LogVariance module")
            u = log_variance(draw.t)
            rows = rows * torch.exp(-u) + u
        return rows.mean()

    def with_settings(self, **settings: Any) -> "Objective":
        """A copy with some settings replaced; an unknown name is a ValueError."""
        try:
            return replace(self, **settings)
        except TypeError as error:
            raise ValueError(f"preset {self.preset!r}: {error}") from error
