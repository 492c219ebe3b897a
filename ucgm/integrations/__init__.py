"""UCGM inside diffusers, and diffusers inside UCGM; the only package that builds on diffusers.

The classes are known to the outside as ``ucgm.UCGMScheduler`` and so on: that is the name a saved
pipeline gives them, whatever file they live in, so ``import ucgm`` is all that loading needs.
"""

from ucgm.integrations.discrete import DiscreteVP as DiscreteVP
from ucgm.integrations.network import DiffusersNetwork as DiffusersNetwork
from ucgm.integrations.pipeline import UCGMPipeline as UCGMPipeline
from ucgm.integrations.scheduler import UCGMScheduler as UCGMScheduler
