"""The samplers by their usual names, as settings of :class:`ucgm.sampler.Sampler`.

Every row is data: ``Sampler(transport, steps, **NAMED["dpmpp_2m"])``, or the same keys in the
``sampler`` section of a configuration.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from ucgm.sampler.grid import Grid
from ucgm.sampler.multistep import Integration, TimeVariable, Variable
from ucgm.sampler.plan import NoiseRule

# An end gap of 0 ends uniform grids a whole step before the data, as most solvers' code does.
NAMED: dict[str, dict[str, Any]] = {
    "ddim": {},
    "ddpm": {"noise": "ddim", "stochasticity": 1.0},
    "euler": {"solver": "adams"},
    "heun": {"solver": "heun"},
    "edm_heun": {"solver": "heun", "variable": "noise", "grid": Grid(spacing="karras")},
    "euler_maruyama": {
        "solver": "euler_maruyama",
        "stochasticity": 1.0,
        "grid": Grid(gap=(0.0, 0.04)),
    },
    "ab2": {"solver": "adams", "order": 2},
    "ab3": {"solver": "adams", "order": 3},
    "ipndm": {"solver": "adams", "order": 4, "variable": "noise", "time_variable": "sigma"},
    "deis": {"solver": "adams", "order": 3, "variable": "noise", "time_variable": "time"},
    "dpmpp_2m": {
        "solver": "adams",
        "order": 2,
        "variable": "data",
        "time_variable": "log_snr",
        "integration": "midpoint",
    },
    "dpmpp_3m": {"solver": "adams", "order": 3, "variable": "data", "time_variable": "log_snr"},
    "unipc": {"solver": "unipc", "order": 2, "variable": "data", "time_variable": "log_snr"},
    "consistency": {"stochasticity": 1.0},
    "any_step": {"solver": "jump"},
    "ucgm": {"extrapolation": 0.5},
    "ucgm_heun": {"order": 2},
    "ucgm_state": {"solver": "adams", "extrapolation": 0.5},
}


SolverName = Literal["ucgm", "adams", "unipc", "heun", "euler_maruyama", "jump"]


# Highest order, and the settings that are read beside steps, grid and restart.
READS: dict[str, tuple[int, frozenset[str]]] = {
    "ucgm": (2, frozenset({"stochasticity", "noise", "extrapolation"})),
    "adams": (4, frozenset({"extrapolation", "variable", "time_variable", "integration"})),
    "unipc": (3, frozenset({"variable", "time_variable", "integration"})),
    "heun": (1, frozenset({"variable", "churn"})),
    "euler_maruyama": (1, frozenset({"stochasticity"})),
    "jump": (1, frozenset({"stochasticity", "noise"})),
}


_CHOICES = {
    "solver": SolverName,
    "variable": Variable,
    "time_variable": TimeVariable,
    "integration": Integration,
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
