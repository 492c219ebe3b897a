"""What an objective may be set to, and which settings have a meaning.

Presets fill these fields in, and YAML files change them.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ucgm.objective import destinations, times
from ucgm.objective.sets import SetTerm
from ucgm.objective.sources import FieldSource, check_sources
from ucgm.runtime.values import Interval, NotNegative, Number, Positive, Range, Share, check_values
from ucgm.transport import Linear, Transport

FieldName = Literal[
    "data",
    "enhanced",
    "guided",
    "teacher",
    "teacher_cfg",
    "distillation",
    "cfg",
    "cfg_target",
    "mixed",
    "mixed_dropped",
    "guided_online",
    "faded",
    "scaled",
    "jump",
    "sources",
]
TangentMethod = Literal["central", "central_prediction", "forward", "jvp"]
StepRule = Literal["one", "exact", "cosine", "ucgm", "relaxed"]
AnchorSchedule = Literal["constant", "ect", "alpha", "soflow"]
Weight = Literal["cosine", "sine", "gap", "share", "twinflow", "half", "tan"]
Scale = Annotated[float, Range(1.0, 1000.0)]


@dataclass(frozen=True)
class ObjectiveSettings:
    """The settings of an objective."""

    preset: str = "flow_matching"
    """name of the preset these settings started from."""
    transport: Transport = Linear()
    """path and prediction target."""
    time_law: times.TimeDistribution = times.Uniform()
    """law of the training time t."""
    destination: destinations.Destination | None = None
    """law of the destination s; null: t for lambda = 0 and the data otherwise."""
    two_time: bool = False
    """the network takes s as well as t."""
    coupling: Literal["independent", "optimal_transport"] = "independent"
    """how noise meets data: ``independent``, or ``optimal_transport`` within the micro-batch."""
    consistency_ratio: Share = 0.0
    """lambda of the anchor m = s + lambda (t - s): 0 multi-step, 1 consistency (the limit)."""
    anchor_schedule: AnchorSchedule = "constant"
    """how the anchor moves with the progress of the run."""
    anchor_window: Interval = (0.0, 1.0)
    """shares of the run between which it moves (AlphaFlow)."""
    tangent: TangentMethod = "central"
    """how the limit is taken: central or forward difference of X, central difference of F alone,
    or forward mode (jvp)."""
    tangent_step: Annotated[float, Range(1e-5, 0.499)] = 0.005
    """width of the differences in t."""
    tangent_warmup: Share = 0.0
    """share of the run over which the part of G beyond F - F* is ramped up."""
    compose_steps: Annotated[int, Range(1, 1000)] = 1
    """network steps that the second term of G takes from m to s."""
    own_velocity: bool = False
    """differentiate along the network's own velocity instead of the field (improved MeanFlow)."""
    residual_network: Literal["online", "target", "teacher"] = "online"
    """network of the second term of G: ``online``, ``target`` (the EMA), or ``teacher``, whose own
    second step it is then (progressive distillation, arXiv 2202.00512)."""
    terminal: bool = False
    """match the velocity at the destination in place of G, where s < t (TVM)."""
    step_rule: StepRule = "one"
    """the factors k and c of F_tgt = F - c phi(k G)."""
    clamp: Positive | None = None
    """phi clamps elementwise to [-clamp, clamp]; null: identity."""
    clamp_near: bool = False
    """phi is also about rows with s < t that have no room for an anchor, m = s (RCGM)."""
    target_clamp: Positive | None = None
    """clamp F_tgt elementwise to [-target_clamp, target_clamp] where m < t; null: not at all."""
    state_clamp: Positive | None = None
    """clamp the states that networks see at an anchor m < t in the same way."""
    normalize: Positive | None = None
    """phi divides by the root mean square of the sample plus this number."""
    field: FieldName = "data"
    """rule of the field F*."""
    sources: tuple[FieldSource, ...] = ()
    """what the field ``sources`` is made of: networks and their weights."""
    enhancement_ratio: Number = 0.0
    """zeta or omega, the strength of guidance in training."""
    guidance_mix: Number = 0.0
    """kappa of the ``mixed`` field."""
    guidance_range: Annotated[tuple[Scale, Scale], "rising"] | None = None
    """draw the guidance scale of each row log-uniformly and give it to the network."""
    guidance_interval: bool = False
    """draw the interval of t of that guidance as well, from U(0, 1/2) to U(1/2, 1), and give it to
    the network (improved MeanFlow)."""
    over_scale: bool = False
    """divide losses by the square of the row's guidance scale, 1 on dropped rows (TVM)."""
    enhancement_interval: Interval = (0.0, 1.0)
    """interval of t in which the field is enhanced; whether its ends count, the rule says."""
    label_dropout: Share = 0.1
    """probability with which a label is replaced by the null label."""
    dropped_rows: Literal["all", "field", "inside"] = "all"
    """rows that it is about: all, those that learn the field (m = s), or those whose t is inside
    the enhancement interval."""
    loss_power: Annotated[float, Range(0.0, 2.0)] = 0.0
    """p of q stopgrad[(q + eps)^-p]: 0 squared error, 1 MeanFlow's adaptive weight."""
    loss_epsilon: NotNegative = 1e-3
    """eps of the same."""
    loss_sum: bool = False
    """q is the sum of squares over a sample instead of the mean."""
    pseudo_huber_c: NotNegative | None = None
    """c of the pseudo-Huber loss, in place of the power family."""
    cosine_loss: bool = False
    """add one minus the cosine over channels."""
    cosine_powered: bool = False
    """add it to q, before the power (TiM)."""
    cosine_floor: Annotated[float, Range(1e-8, 1e3)] = 0.1
    """smallest norm the cosine divides by; 1e-8 in published code, which makes the first gradient
    of a network with zero output a million times too large."""
    time_weight: Weight | None = None
    """weight of the loss over the times."""
    log_variance: bool = False
    """divide the loss by a learned variance of t, or of t and s with ``two_time``."""
    log_loss: Positive | None = None
    """eps of log(rho e^-u + eps) + u in place of rho e^-u + u, u the log-variance (decoupled
    MeanFlow)."""
    flow_anchor: NotNegative = 0.0
    """weight of a flow-matching term at s = t on the same rows (FACM, TVM)."""
    flow_anchor_law: times.TimeDistribution | None = None
    """law of the times of that term, drawn apart from t; null: they are t."""
    flow_anchor_cosine: bool = True
    """it has the cosine over channels as well."""
    velocity_head: NotNegative = 0.0
    """weight of the loss of the network's second head, which learns the field (improved
    MeanFlow)."""
    exit_head: NotNegative = 0.0
    """weight of the loss of the network's exit head, a prediction from its earlier blocks (internal
    guidance, arXiv 2512.24176)."""
    exit_target: Literal["deep", "field"] = "deep"
    """what it learns: ``deep``, the network's own F without gradient, or ``field``, as F does."""
    alignment: NotNegative = 0.0
    """weight of the representation alignment term (REPA)."""
    matching: NotNegative = 0.0
    """weight of the distribution matching term (TwinFlow)."""
    sets: tuple[SetTerm, ...] = ()
    """losses of the set of samples in the features of frozen encoders (FD-loss, MMD)."""
    residual_weight: NotNegative = 1.0
    """weight of all but these; 0: no residual is made, and the sets alone are learned."""

    @property
    def smallest_jump(self) -> float:
        """Jumps t - s of this length learn the field, on a grid whose step it is; 0: none."""
        return 0.0 if self.destination is None else self.destination.smallest

    def __post_init__(self) -> None:
        """Refuse settings without a meaning.

        Raises:
            ValueError: what was given, and what may be.
        """
        check_values(self, "objective")
        if self.loss_power and self.loss_epsilon < 1e-9:
            raise ValueError(
                "objective.loss_epsilon must be at least 1e-09 where loss_power divides by it, got "
                f"{self.loss_epsilon}"
            )
        if not (self.residual_weight or self.sets):
            raise ValueError(
                "objective.residual_weight 0 leaves nothing to learn: name objective.sets"
            )
        drawn = self.guidance_range is not None
        if self.field == "scaled" and not drawn and self.enhancement_ratio <= 0.0:
            raise ValueError(
                "objective.field scaled divides by enhancement_ratio, the guidance scale: 1 is "
                f"none, got {self.enhancement_ratio}"
            )
        if self.matching and not isinstance(self.destination, destinations.TwinFlowSplit):
            raise ValueError(
                "objective.matching is a term of TwinFlow: set destination to TwinFlowSplit"
            )
        ratio = self.consistency_ratio
        anchored = 0.0 < ratio and (ratio < 1.0 or self.tangent == "forward")
        if self.time_weight == "gap" and self.anchor_schedule != "ect" and not anchored:
            raise ValueError(
                "objective.time_weight gap divides by the gap between t and its anchor m, which is "
                "not there: set anchor_schedule: ect, or a consistency_ratio between 0 and 1"
            )
        if (self.guidance_interval or self.over_scale) and not drawn:
            raise ValueError(
                "objective.guidance_interval and over_scale are about a guidance scale that the "
                "network is given: set guidance_range"
            )
        if self.log_loss is not None and not self.log_variance:
            raise ValueError("objective.log_loss is about a log_variance: set log_variance: true")
        if self.field == "sources":
            check_sources(self.sources)
        elif self.sources:
            raise ValueError("objective.sources is about the field sources: set field: sources")
        if self.exit_head and (self.velocity_head or self.flow_anchor or self.terminal):
            raise ValueError(
                "objective.exit_head is trained with one pass of F: it goes with no velocity_head, "
                "flow_anchor or terminal"
            )
        if self.terminal:
            self._check_terminal()

    def _check_terminal(self) -> None:
        """Refuse a terminal velocity without the network, the derivative or the rows it needs."""
        if not (self.two_time and self.tangent == "jvp"):
            raise ValueError(
                "objective.terminal differentiates a network of two times by the second: set "
                "two_time: true and tangent: jvp"
            )
        # Where the laws of t and s leave no row with s = t, flow matching is a term of its own.
        apart = isinstance(self.destination, destinations.GapFirst | destinations.Below)
        if not apart and not isinstance(
            self.destination, destinations.SortedPair | destinations.Apart
        ):
            raise ValueError(
                "objective.terminal needs rows with s < t: set destination to GapFirst, Below, "
                f"SortedPair or Apart, got {self.destination}"
            )
        own = self.flow_anchor > 0 and self.flow_anchor_law is not None
        if not own if apart else self.flow_anchor > 0:
            raise ValueError(
                "objective.terminal learns flow matching on its rows with s = t, or where the "
                f"destination {self.destination} makes none, by a flow_anchor with a "
                "flow_anchor_law: set the one or the other"
            )
        neutral = {"own_velocity": False, "clamp": None, "normalize": None, "tangent_warmup": 0.0}
        for name, value in (neutral | {"step_rule": "one"}).items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"objective.{name} is about G, in whose place objective.terminal puts another "
                    f"comparison: leave it at {value}, got {getattr(self, name)}"
                )
