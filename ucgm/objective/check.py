"""Which settings of an objective have a meaning."""

from typing import TYPE_CHECKING, get_args

from ucgm.objective.anchors import AnchorSchedule
from ucgm.objective.fields import FieldName
from ucgm.objective.losses import Weight
from ucgm.objective.residual import StepRule, TangentMethod
from ucgm.timesteps import Below, Data, Present, Quarters

if TYPE_CHECKING:
    from ucgm.objective.objective import Objective

_CHOICES = {
    "field": get_args(FieldName),
    "coupling": ("independent", "optimal_transport"),
    "residual_network": ("online", "target"),
    "anchor_schedule": get_args(AnchorSchedule),
    "tangent": get_args(TangentMethod),
    "step_rule": get_args(StepRule),
    "time_weight": (None, *get_args(Weight)),
}
_ABOVE_ZERO = ("clamp", "normalize", "compose_steps")
_NOT_NEGATIVE = (
    "pseudo_huber_c",
    "loss_power",
    "loss_epsilon",
    "flow_anchor",
    "alignment",
    "matching",
)


def check(objective: "Objective") -> None:
    """Refuse settings without a meaning.

    Raises:
        ValueError: what was given, and what may be.
    """
    for name in ("consistency_ratio", "label_dropout", "tangent_warmup"):
        if not 0.0 <= (value := getattr(objective, name)) <= 1.0:
            raise ValueError(f"objective.{name} must be in [0, 1], got {value}")
    low, high = objective.enhancement_interval
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(
            "objective.enhancement_interval must be two rising times in [0, 1], "
            f"got {objective.enhancement_interval}"
        )
    if not 0.0 < objective.tangent_step < 0.5:
        raise ValueError(
            f"objective.tangent_step must be in (0, 0.5), got {objective.tangent_step}"
        )
    for name, allowed in _CHOICES.items():
        if getattr(objective, name) not in allowed:
            raise ValueError(
                f"objective.{name} must be one of {', '.join(map(str, allowed))}, "
                f"got {getattr(objective, name)!r}"
            )
    for name in (*_ABOVE_ZERO, *_NOT_NEGATIVE):
        value = getattr(objective, name)
        if value is not None and (value < 0 or (value == 0 and name in _ABOVE_ZERO)):
            least = "above 0" if name in _ABOVE_ZERO else "0 or above"
            raise ValueError(f"objective.{name} must be {least}, got {value}")
    scales = objective.guidance_range
    if scales is not None and not 1.0 <= scales[0] <= scales[1]:
        raise ValueError(f"objective.guidance_range must rise from 1: {scales}")
    if objective.field == "scaled" and scales is None and objective.enhancement_ratio <= 0.0:
        raise ValueError(
            "objective.field scaled divides by enhancement_ratio, the guidance scale: 1 is none, "
            f"got {objective.enhancement_ratio}"
        )
    if objective.matching and not isinstance(objective.destination, Quarters):
        raise ValueError("objective.matching is a term of TwinFlow: set destination to Quarters")
    ratio = objective.consistency_ratio
    anchored = 0.0 < ratio and (ratio < 1.0 or objective.tangent == "forward")
    if objective.time_weight == "gap" and objective.anchor_schedule != "ect" and not anchored:
        raise ValueError(
            "objective.time_weight gap divides by the gap between t and its anchor m, which is "
            "not there: set anchor_schedule: ect, or a consistency_ratio between 0 and 1"
        )
    if objective.terminal:
        _check_terminal(objective)


def _check_terminal(objective: "Objective") -> None:
    """Refuse a terminal velocity without the network, the derivative or the rows it needs."""
    if not (objective.two_time and objective.tangent == "jvp"):
        raise ValueError(
            "objective.terminal differentiates a network of two times by the second: set two_time: "
            "true and tangent: jvp"
        )
    if objective.flow_anchor:
        raise ValueError(
            "objective.terminal learns flow matching on its rows with s = t: set flow_anchor: 0"
        )
    if objective.destination is None or isinstance(objective.destination, Present | Data | Below):
        raise ValueError(
            "objective.terminal needs rows with s < t and rows with s = t, where it learns the "
            f"velocity: set destination to SortedPair or Dyadic, got {objective.destination}"
        )
    neutral = {"own_velocity": False, "clamp": None, "normalize": None, "tangent_warmup": 0.0}
    for name, value in (neutral | {"step_rule": "one"}).items():
        if getattr(objective, name) != value:
            raise ValueError(
                f"objective.{name} is about G, in whose place objective.terminal puts another "
                f"comparison: leave it at {value}, got {getattr(objective, name)}"
            )
