"""UCGM-T: one objective, of which the continuous-time methods are settings.

A step is two calls.  :meth:`Objective.draw` makes all random numbers; :meth:`Objective.terms` is
a pure function of them, so every formula can be tested with given numbers:

    x_t   = alpha x + sigma z              transport
    F     = network(x_t, t, y[, s])        the pass with gradient
    F*    = field at (x_t, t)              fields: data, enhancement, teacher
    F_tgt = F* or F - c phi(G)             residual: anchor m, tangent
    loss  = mean w(t) rho(F - F_tgt)       losses
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ucgm.objective.draw import Draw, HostTimes, Terms
from ucgm.objective.fields import FIELD_RULES, FieldName, field_coefficients
from ucgm.objective.losses import TimeWeight, per_sample_loss, time_weight
from ucgm.objective.passes import Network, Passes
from ucgm.objective.residual import (
    StepRule,
    TangentMethod,
    central_tangent,
    finite_tangent,
    jvp_tangent,
    stepped_target,
)
from ucgm.randomness import RowRandom, as_random
from ucgm.timesteps import TimeLaw, Uniform
from ucgm.transport import Linear, Transport, expand


@dataclass(frozen=True)
class Objective:
    """A training objective; it is its own configuration (see :func:`ucgm.preset`)."""

    preset: str = "flow_matching"
    """name of the preset these settings started from."""
    transport: Transport = Linear()
    """path and prediction target."""
    time_law: TimeLaw = Uniform()
    """law of the training time t."""
    consistency_ratio: float = 0.0
    """lambda of the anchor m = s + lambda (t - s): 0 multi-step, 1 consistency (the limit)."""
    tangent: TangentMethod = "central"
    """how the limit's derivative is taken: central difference or forward mode (jvp)."""
    tangent_step: float = 0.005
    """half-width of the central difference in t."""
    step_rule: StepRule = "ucgm"
    """the factor c of F_tgt = F - c phi(G)."""
    clamp: float | None = 1.0
    """phi clamps elementwise to [-clamp, clamp]; None: identity."""
    field: FieldName = "data"
    """rule of the field F*."""
    enhancement_ratio: float = 0.0
    """zeta, the strength of guidance in training; 0 is off."""
    enhancement_interval: tuple[float, float] = (0.0, 1.0)
    """open interval of t in which the field is enhanced."""
    label_dropout: float = 0.1
    """probability with which a label is replaced by the null label."""
    pseudo_huber_c: float | None = None
    """c of the pseudo-Huber loss; None: mean squared error."""
    cosine_loss: bool = False
    """add one minus the cosine over channels."""
    time_weight: TimeWeight | None = None
    """weight of the loss over t."""

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        for name in ("consistency_ratio", "label_dropout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"objective.{name} must be in [0, 1], got {getattr(self, name)}")
        low, high = self.enhancement_interval
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(
                "objective.enhancement_interval must be two rising times in [0, 1], "
                f"got {self.enhancement_interval}"
            )
        if not 0.0 < self.tangent_step < 0.5:
            raise ValueError(f"objective.tangent_step must be in (0, 0.5), got {self.tangent_step}")
        if self.field != "data" and self.field not in FIELD_RULES:
            raise ValueError(f"objective.field {self.field!r} is not one of {list(FIELD_RULES)}")

    @property
    def two_time(self) -> bool:
        """Whether the network needs the second time s."""
        return False

    @property
    def needs_teacher(self) -> bool:
        """Whether :meth:`terms` needs a frozen teacher."""
        return self.enhancement_ratio != 0 and "teacher" in self._sources()

    @property
    def needs_target(self) -> bool:
        """Whether :meth:`terms` needs an EMA (target) network."""
        return self.enhancement_ratio != 0 and "target" in self._sources()

    def _sources(self) -> tuple[str, ...]:
        rule = FIELD_RULES.get(self.field)
        return () if rule is None else (rule.conditional, rule.unconditional)

    def draw(
        self,
        x: Tensor,
        y: Tensor | None,
        null_label: int | None = None,
        generator: RowRandom | torch.Generator | None = None,
    ) -> Draw:
        """All randomness of a step.

        Args:
            x: (B, C, H, W) data; not modified.
            y: (B,) int64 labels, or None without classes; not modified.
            null_label: the label that stands for "no class"; None: no label is dropped.
            generator: row keys (the same noise however the batch is cut), a torch generator, or
                None for the global one.
        """
        host = as_random(generator, len(x), torch.device("cpu"))
        numbers = RowRandom(host.keys.cpu(), stream=1)
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        t = self.time_law.quantile(numbers.uniform(dtype=torch.float64), self.transport).to(dtype)
        s = t if self.consistency_ratio == 0.0 else torch.zeros_like(t)
        dropped = torch.zeros(len(x), dtype=torch.bool)
        if y is not None and null_label is not None:
            dropped = numbers.uniform() < self.label_dropout
            y = torch.where(dropped.to(y.device, non_blocking=True), null_label, y)
        z = RowRandom(host.keys.to(x.device)).normal(*x.shape[1:], dtype=dtype)
        times = HostTimes(t, s, dropped)
        t, s, dropped = (v.to(x.device, non_blocking=True) for v in times)
        return Draw(x, y, z, t, s, dropped, null_label, times)

    def terms(
        self,
        network: Network,
        draw: Draw,
        *,
        target: Network | None = None,
        teacher: Network | None = None,
    ) -> Terms:
        """The loss of a draw.

        Args:
            network: the network being trained; may be wrapped for data-parallel training.
            draw: the random numbers; no tensor of it is modified.
            target: the EMA network, for the ``enhanced`` field (None: the network itself).
            teacher: the frozen teacher, for the ``teacher`` fields.
        """
        if self.needs_teacher and teacher is None:
            raise ValueError(
                f"objective.field = {self.field!r} needs a teacher: start from a trained run"
            )
        if draw.s is None:
            s = draw.t if self.consistency_ratio == 0.0 else torch.zeros_like(draw.t)
            draw = Draw(draw.x, draw.y, draw.z, draw.t, s, draw.dropped, draw.null_label)
        passes = Passes(network, draw, self.two_time)
        x_t = self.transport.mix(draw.x, draw.z, draw.t)
        assert draw.s is not None
        prediction = passes.gradient(x_t, draw.t, draw.s)
        with torch.no_grad():
            networks = {"online": network, "target": target or network, "teacher": teacher}
            field = self._field(passes, x_t, prediction.detach(), networks)
            if self.consistency_ratio == 0.0:
                wanted = field
            else:
                wanted = self._consistency_target(passes, x_t, prediction.detach(), field)
        per_sample = per_sample_loss(prediction, wanted, self.pseudo_huber_c, self.cosine_loss)
        loss = (time_weight(self.time_weight, draw.t) * per_sample).mean()
        return Terms(loss, per_sample, prediction, wanted)

    def _field(
        self, passes: Passes, x_t: Tensor, prediction: Tensor, networks: dict[str, Any]
    ) -> Tensor:
        """F* at (x_t, t): the affine combination of the rule, each source on its rows only."""
        draw = passes.draw
        data = self.transport.target(draw.x, draw.z, draw.t)
        if self.field == "data" or self.enhancement_ratio == 0.0:
            return data
        rule = FIELD_RULES[self.field]
        host = field_coefficients(
            rule, self.enhancement_ratio, self.enhancement_interval, draw.host_times()
        )
        a_data, a_cond, a_uncond = (
            expand(a, x_t) for a in host.to(x_t.device, x_t.dtype, non_blocking=True)
        )
        field = a_data * data
        if bool(host[1].any()):
            if rule.conditional == "online" and not self.two_time:
                conditional = prediction
            else:
                source = networks[rule.conditional]
                conditional = passes.on_rows(source, host[1] != 0, x_t, draw.t, draw.y, draw.t)
            field = field + a_cond * conditional
        if bool(host[2].any()):
            null = draw.y
            if null is not None and draw.null_label is not None:
                null = torch.full_like(null, draw.null_label)
            source = networks[rule.unconditional]
            field = field + a_uncond * passes.on_rows(
                source, host[2] != 0, x_t, draw.t, null, draw.t
            )
        return field

    def _consistency_target(
        self, passes: Passes, x_t: Tensor, prediction: Tensor, field: Tensor
    ) -> Tensor:
        """F_tgt = F - c phi(G) for an anchor m > s, in full precision."""
        draw, transport = passes.draw, self.transport
        t, s = draw.t, draw.s
        assert s is not None

        def evaluate(x: Tensor, time: Tensor) -> Tensor:
            return passes.online(x, time, draw.y, s)

        with torch.autocast(x_t.device.type, enabled=False):
            if self.consistency_ratio < 1.0:
                m = s + self.consistency_ratio * (t - s)
                tangent = finite_tangent(transport, prediction, evaluate, x_t, (t, s, m), field)
            elif self.tangent == "jvp":
                m = None
                tangent = jvp_tangent(transport, evaluate, x_t, t, s, field)
            else:
                m = None
                tangent = central_tangent(transport, evaluate, x_t, t, s, field, self.tangent_step)
            return stepped_target(transport, prediction, tangent, t, m, self.step_rule, self.clamp)
