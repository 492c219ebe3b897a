"""The samplers by their usual names, as settings of :class:`ucgm.sampler.Sampler`.

Every row is data: ``Sampler(transport, steps, **NAMED["dpmpp_2m"])``, or the same keys in the
``sampler`` section of a configuration.
"""

from typing import Any

from ucgm.sampler.grid import Grid

_DPM = {"variable": "data", "time_variable": "log_snr"}
_SDE = {"solver": "euler_maruyama", "stochasticity": 1.0}
# An end gap of 0 ends uniform grids a whole step before the data, as most solvers' code does.
NAMED: dict[str, dict[str, Any]] = {
    "ddim": {},
    "ddpm": {"noise": "ddim", "stochasticity": 1.0},
    "euler": {"solver": "adams"},
    "heun": {"solver": "heun"},
    "edm_heun": {"solver": "heun", "variable": "noise", "grid": Grid(spacing="karras")},
    "euler_maruyama": _SDE | {"grid": Grid(gap=(0.0, 0.04))},
    "ab2": {"solver": "adams", "order": 2},
    "ab3": {"solver": "adams", "order": 3},
    "ipndm": {"solver": "adams", "order": 4, "variable": "noise", "time_variable": "sigma"},
    "deis": {"solver": "adams", "order": 3, "variable": "noise", "time_variable": "time"},
    "dpmpp_2m": {"solver": "adams", "order": 2, **_DPM, "integration": "midpoint"},
    "dpmpp_3m": {"solver": "adams", "order": 3, **_DPM},
    "unipc": {"solver": "unipc", "order": 2, **_DPM},
    "consistency": {"stochasticity": 1.0},
    "any_step": {"solver": "jump"},
    "ucgm": {"extrapolation": 0.5},
    "ucgm_heun": {"order": 2},
    "ucgm_state": {"solver": "adams", "extrapolation": 0.5},
}
