"""UCGM-T, the training objective: settings, presets, draws and terms."""

from ucgm.objective.additions import Alignment
from ucgm.objective.draw import Draw, Terms
from ucgm.objective.losses import LogVariance
from ucgm.objective.objective import Objective
from ucgm.objective.presets import PRESETS, preset
from ucgm.objective.times import (
    ArcTan,
    Below,
    Beta,
    Data,
    Destination,
    Dyadic,
    LogitNormal,
    LogNormal,
    SameTime,
    SortedPair,
    TimeDistribution,
    TwinFlowSplit,
    Uniform,
)

__all__ = [
    "PRESETS",
    "Alignment",
    "ArcTan",
    "Below",
    "Beta",
    "Data",
    "Destination",
    "Draw",
    "Dyadic",
    "LogNormal",
    "LogVariance",
    "LogitNormal",
    "Objective",
    "SameTime",
    "TwinFlowSplit",
    "SortedPair",
    "Terms",
    "TimeDistribution",
    "Uniform",
    "preset",
]
