"""UCGM-S, the sampler: settings, grids, plans, guidance."""

from ucgm.sampler.grid import Grid
from ucgm.sampler.guidance import Autoguided, Guidance, GuidanceInput, Guided
from ucgm.sampler.named import NAMED
from ucgm.sampler.plan import Restart, Step
from ucgm.sampler.sampler import Sampler, State
from ucgm.sampler.singlestep import Churn

__all__ = [
    "NAMED",
    "Autoguided",
    "Churn",
    "Grid",
    "Guidance",
    "GuidanceInput",
    "Guided",
    "Restart",
    "Sampler",
    "State",
    "Step",
]
