"""Continuous generative models: one objective, one sampler, one backbone.

objective = ucgm.preset("flow_matching")
draw = objective.draw(x, y, null_label=10)
terms = objective.terms(network, draw)

x = ucgm.Sampler(ucgm.Linear(), steps=20)(network, z, y)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ucgm.generation.run import Run, load_run
    from ucgm.integrations import DiffusersNetwork, DiscreteVP, UCGMPipeline, UCGMScheduler
    from ucgm.nn import DDT, EDM2, DiT, DiTDH, MiT, RAEv2, UNet
    from ucgm.objective import Draw, Objective, Terms, preset
    from ucgm.runs.config import Config
    from ucgm.runtime.randomness import RowRandom
    from ucgm.sampler import Autoguided, Churn, Grid, Guidance, Guided, Restart, Sampler
    from ucgm.training.start import train
    from ucgm.transport import Linear, Transport, Trig

# Names are imported when they are used: `ucgm --help` must not wait for torch.
_HOMES = {
    "generation.run": ("Run", "load_run"),
    "integrations": ("DiffusersNetwork", "DiscreteVP", "UCGMPipeline", "UCGMScheduler"),
    "nn": ("DDT", "DiT", "DiTDH", "EDM2", "MiT", "RAEv2", "UNet"),
    "objective": ("Draw", "Objective", "Terms", "preset"),
    "runs.config": ("Config",),
    "runtime.randomness": ("RowRandom",),
    "sampler": ("Autoguided", "Churn", "Grid", "Guidance", "Guided", "Restart", "Sampler"),
    "training.start": ("train",),
    "transport": ("Linear", "Transport", "Trig"),
}
_WHERE = {name: f"ucgm.{module}" for module, names in _HOMES.items() for name in names}

__all__ = [*_WHERE]

# A saved pipeline names its parts ("ucgm", class); diffusers looks for their base classes here too.
_WHERE |= {"ModelMixin": "diffusers", "SchedulerMixin": "diffusers"}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _WHERE:
        raise AttributeError(f"module 'ucgm' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
