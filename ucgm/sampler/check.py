"""Which settings a solver reads: a setting without effect is an error, not a surprise."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from ucgm.sampler.multistep import Clock, Quadrature, Variable
from ucgm.sampler.plan import NoiseRule

SolverName = Literal["ucgm", "adams", "unipc", "heun", "euler_maruyama", "jump"]

# Highest order, and the settings that are read beside steps, grid and restart.
READS: dict[str, tuple[int, frozenset[str]]] = {
    "ucgm": (2, frozenset({"stochasticity", "noise", "extrapolation"})),
    "adams": (4, frozenset({"extrapolation", "variable", "clock", "quadrature"})),
    "unipc": (3, frozenset({"variable", "clock", "quadrature"})),
    "heun": (1, frozenset({"variable", "churn"})),
    "euler_maruyama": (1, frozenset({"stochasticity"})),
    "jump": (1, frozenset({"stochasticity", "noise"})),
}
_CHOICES = {
    "solver": SolverName,
    "variable": Variable,
    "clock": Clock,
    "quadrature": Quadrature,
    "noise": NoiseRule,
}


def check_settings(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse settings of a sampler that have no meaning.

    Raises:
        ValueError: naming the setting and what it may be.
    """
    if settings["steps"] < 1:
        raise ValueError(f"sampler.steps must be at least 1, got {settings['steps']}")
    for name, kind in _CHOICES.items():
        if settings[name] not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise ValueError(f"sampler.{name} must be one of {choices}, got {settings[name]!r}")
    solver, order, amount = (settings[k] for k in ("solver", "order", "stochasticity"))
    if not 0.0 <= amount <= 1.0:
        raise ValueError(f"sampler.stochasticity must be in [0, 1], got {amount}")
    highest, reads = READS[solver]
    if not 1 <= order <= highest:
        allowed = f"1 to {highest}" if highest > 1 else "1"
        raise ValueError(f"sampler.order of solver {solver} must be {allowed}, got {order}")
    for name in frozenset().union(*(r for _, r in READS.values())) - reads:
        if settings[name] != defaults[name]:
            others = ", ".join(s for s, (_, r) in READS.items() if name in r)
            raise ValueError(
                f"sampler.{name} is not a setting of solver {solver}: leave it out, or choose "
                f"the solver from {others}"
            )
    if order > 1 and amount > 0:
        raise ValueError(f"sampler.order {order} has no stochastic form: set stochasticity to 0")
    if solver == "adams" and order > 1 and settings["extrapolation"]:
        raise ValueError("sampler.extrapolation of solver adams is a setting of order 1")
