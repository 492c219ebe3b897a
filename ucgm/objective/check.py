"""Which settings of an objective have a meaning."""

from typing import TYPE_CHECKING

from ucgm.objective.fields import FIELD_RULES

if TYPE_CHECKING:
    from ucgm.objective.objective import Objective


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
    choices = {
        "field": ("data", "jump", *FIELD_RULES),
        "coupling": ("independent", "optimal_transport"),
        "residual_network": ("online", "target"),
    }
    for name, allowed in choices.items():
        if getattr(objective, name) not in allowed:
            raise ValueError(
                f"objective.{name} must be one of {', '.join(allowed)}, "
                f"got {getattr(objective, name)!r}"
            )
    scales = objective.guidance_range
    if scales is not None and not 1.0 <= scales[0] <= scales[1]:
        raise ValueError(f"objective.guidance_range must rise from 1: {scales}")
    if objective.terminal and not (objective.two_time and objective.tangent == "jvp"):
        raise ValueError(
            "objective.terminal differentiates a network of two times by the second: set two_time: "
            "true and tangent: jvp"
        )
    if objective.terminal and objective.flow_anchor:
        raise ValueError(
            "objective.terminal learns flow matching on its rows with s = t: set flow_anchor: 0"
        )
