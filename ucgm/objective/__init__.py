"""UCGM-T, the training objective: settings, presets, draws and terms."""

from ucgm.objective.additions import Alignment as Alignment
from ucgm.objective.draw import Draw as Draw
from ucgm.objective.draw import Terms as Terms
from ucgm.objective.losses import LogVariance as LogVariance
from ucgm.objective.objective import Objective as Objective
from ucgm.objective.presets import PRESETS as PRESETS
from ucgm.objective.presets import preset as preset
from ucgm.objective.sources import FieldSource as FieldSource
from ucgm.objective.times import Apart as Apart
from ucgm.objective.times import ArcTan as ArcTan
from ucgm.objective.times import Below as Below
from ucgm.objective.times import Beta as Beta
from ucgm.objective.times import Data as Data
from ucgm.objective.times import Destination as Destination
from ucgm.objective.times import Dyadic as Dyadic
from ucgm.objective.times import GapFirst as GapFirst
from ucgm.objective.times import GridStep as GridStep
from ucgm.objective.times import LogitNormal as LogitNormal
from ucgm.objective.times import LogNormal as LogNormal
from ucgm.objective.times import SameTime as SameTime
from ucgm.objective.times import SortedPair as SortedPair
from ucgm.objective.times import TimeDistribution as TimeDistribution
from ucgm.objective.times import TwinFlowSplit as TwinFlowSplit
from ucgm.objective.times import Uniform as Uniform
