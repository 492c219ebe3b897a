"""UCGM-S, the sampler: settings, grids, plans, guidance."""

from ucgm.sampler.grids import Grid
from ucgm.sampler.guidance import Autoguided, Guidance, GuidanceInput, Guided
from ucgm.sampler.loop import Sampler, State
from ucgm.sampler.named import NAMED
from ucgm.sampler.plan import Restart, Step
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
