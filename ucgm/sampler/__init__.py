"""UCGM-S, the sampler: settings, grids, plans, guidance."""

from ucgm.sampler.grids import Grid
from ucgm.sampler.guidance import Guidance, Guided
from ucgm.sampler.loop import Sampler, State
from ucgm.sampler.plan import Step

__all__ = ["Grid", "Guidance", "Guided", "Sampler", "State", "Step"]
