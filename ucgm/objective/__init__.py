"""UCGM-T, the training objective: settings, presets, draws and terms."""

from ucgm.objective.draw import Draw, Terms
from ucgm.objective.objective import Objective
from ucgm.objective.presets import PRESETS, preset

__all__ = ["PRESETS", "Draw", "Objective", "Terms", "preset"]
