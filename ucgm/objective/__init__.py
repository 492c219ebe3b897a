"""UCGM-T, the training objective: settings, presets, draws and terms."""

from ucgm.objective.alignment import Alignment as Alignment
from ucgm.objective.destinations import Apart as Apart
from ucgm.objective.destinations import Below as Below
from ucgm.objective.destinations import Data as Data
from ucgm.objective.destinations import Destination as Destination
from ucgm.objective.destinations import Dyadic as Dyadic
from ucgm.objective.destinations import GapFirst as GapFirst
from ucgm.objective.destinations import GridStep as GridStep
from ucgm.objective.destinations import SameTime as SameTime
from ucgm.objective.destinations import SortedPair as SortedPair
from ucgm.objective.destinations import TwinFlowSplit as TwinFlowSplit
from ucgm.objective.draw import Draw as Draw
from ucgm.objective.draw import Terms as Terms
from ucgm.objective.losses import LogVariance as LogVariance
from ucgm.objective.objective import Objective as Objective
from ucgm.objective.presets import POST_TRAINING as POST_TRAINING
from ucgm.objective.presets import PRESETS as PRESETS
from ucgm.objective.presets import preset as preset
from ucgm.objective.sets import SetTerm as SetTerm
from ucgm.objective.sources import FieldSource as FieldSource
from ucgm.objective.times import ArcTan as ArcTan
from ucgm.objective.times import Beta as Beta
from ucgm.objective.times import LogitNormal as LogitNormal
from ucgm.objective.times import LogNormal as LogNormal
from ucgm.objective.times import TimeDistribution as TimeDistribution
from ucgm.objective.times import Uniform as Uniform
