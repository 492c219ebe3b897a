"""UCGM-T, the training objective: settings, presets, draws and terms."""

from ucgm.objective.additions import Alignment
from ucgm.objective.draw import Draw, Terms
from ucgm.objective.losses import LogVariance
from ucgm.objective.objective import Objective
from ucgm.objective.presets import PRESETS, preset

__all__ = ["PRESETS", "Alignment", "Draw", "LogVariance", "Objective", "Terms", "preset"]
