"""UCGM-S, the sampler: settings, grids, plans, guidance."""

from ucgm.sampler.grid import Grid as Grid
from ucgm.sampler.guidance import Autoguided as Autoguided
from ucgm.sampler.guidance import Guidance as Guidance
from ucgm.sampler.guidance import GuidanceInput as GuidanceInput
from ucgm.sampler.guidance import Guided as Guided
from ucgm.sampler.named import NAMED as NAMED
from ucgm.sampler.plan import Restart as Restart
from ucgm.sampler.plan import Step as Step
from ucgm.sampler.sampler import Sampler as Sampler
from ucgm.sampler.sampler import State as State
from ucgm.sampler.singlestep import Churn as Churn
