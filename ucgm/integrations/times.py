"""The times of a scheduler's steps: as a pipeline gives them, of our grid, or of another scheduler.

A scheduler class of diffusers makes its timesteps and noise levels itself, from its own settings;
of those any solver can go through, the levels are turned into times of the path.  The model sees
the timesteps as that class has them, rounded or not.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor

from ucgm.integrations.discrete import DiscreteVP
from ucgm.sampler import Grid
from ucgm.transport import Linear, Transport

# Classes whose timesteps serve any solver -> where their noise levels are found.
SCHEDULES: dict[str, Literal["timesteps", "sigmas", "flow"]] = {
    "DDIMScheduler": "timesteps",
    "DDIMParallelScheduler": "timesteps",
    "DDPMScheduler": "timesteps",
    "DDPMParallelScheduler": "timesteps",
    "DEISMultistepScheduler": "sigmas",
    "DPMSolverMultistepScheduler": "sigmas",
    "DPMSolverSinglestepScheduler": "sigmas",
    "EulerAncestralDiscreteScheduler": "sigmas",
    "EulerDiscreteScheduler": "sigmas",
    "HeunDiscreteScheduler": "sigmas",
    "LMSDiscreteScheduler": "sigmas",
    "UniPCMultistepScheduler": "sigmas",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
}
# Settings with the same name in the scheduler and in Grid.
GRID = ("warp", "gap", "spacing", "rho")
# What a class of theirs, or numpy and torch behind it, may say to settings without a meaning.
_FAILURES = (ValueError, TypeError, ArithmeticError, LookupError, AssertionError, RuntimeError,
             ImportError, AttributeError)  # fmt: skip


@cache
def defaults_of(name: str) -> dict[str, Any]:
    """Settings of a scheduler class of diffusers and their defaults."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: p.default for key, p in parameters.items() if key not in ("self", "kwargs")}


def grid_of(config: Mapping[str, Any], shift: float) -> Grid:
    """Our grid with the settings of a scheduler.

    Raises:
        ValueError: settings without a meaning, among them those of a grid that is not used.
    """
    grid, name = Grid(shift=shift, **{name: config[name] for name in GRID}), config["schedule"]
    if name is not None and (
        name not in SCHEDULES or config["transport"] is not None or grid != Grid(shift=shift)
    ):
        raise ValueError(
            f"schedule {name} goes with no transport and no setting of our grid "
            f"({', '.join(GRID)}), and is one of {', '.join(SCHEDULES)}: give schedule=None"
        )
    return grid


def places_of(timestep: float | Tensor, known: Tensor, order: int) -> list[int]:
    """Numbers of the timesteps ``known`` (N,) equal to one (); of two in a step, the later."""
    same = (known.cpu() == torch.as_tensor(timestep).cpu()).nonzero().flatten().tolist()
    return [i for i in same if i % order == 0]


def offset_of(path: Transport) -> int:
    """Timestep = N t - offset: 1 where it is the index of a discrete level."""
    return int(isinstance(path, DiscreteVP))


def times_of(
    config: Mapping[str, Any],
    path: Transport,
    steps: int | None,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    mu: float | None = None,
) -> tuple[list[float], Tensor]:
    """Times of the steps, and the timesteps (N,) that the model sees there.

    Args:
        config: of a :class:`ucgm.UCGMScheduler`.
        path: of its model.
        steps: how many, where neither sigmas nor timesteps are given.
        sigmas: noise levels of the linear path before the shift.
        timesteps: as the model sees them.
        mu: logarithm of the shift, with use_dynamic_shifting.

    Raises:
        ValueError: something is missing, or the class that makes the times refuses it.
    """
    shift, levels = float(config["shift"]), config["num_train_timesteps"]
    if config["use_dynamic_shifting"]:
        if mu is None:
            raise ValueError("mu is missing: use_dynamic_shifting takes the shift from it")
        shift = math.exp(mu)
    if steps is None and sigmas is None and timesteps is None:
        raise ValueError("give num_inference_steps, sigmas or timesteps")
    if config["schedule"] is not None and (timesteps is None or sigmas is not None):
        asked = {"num_inference_steps": steps} if sigmas is None else {"sigmas": sigmas}
        more = {"timesteps": timesteps, "mu": mu}
        t, seen = _theirs(config, path, asked | {k: v for k, v in more.items() if v is not None})
    else:
        seen = None if timesteps is None else torch.as_tensor(timesteps, dtype=torch.float64)
        if sigmas is not None:
            if not isinstance(path, Linear):
                raise ValueError("sigmas are times of the linear path alone: give timesteps")
            t = torch.as_tensor(sigmas, dtype=torch.float64)
            t = shift * t / (1.0 + (shift - 1.0) * t)
        elif seen is not None:
            t = (seen + offset_of(path)) / levels
        else:
            t = grid_of(config, shift).times(steps or 0, path)[:-1]
        seen = (t * levels - offset_of(path) if seen is None else seen).float()
    if not (len(t) == len(seen) == (steps or len(t))):
        raise ValueError(f"{len(t)} times and {len(seen)} timesteps were given for {steps} steps")
    return t.tolist(), seen


def _theirs(
    config: Mapping[str, Any], path: Transport, given: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Times and timesteps (N,) as the class ``config["schedule"]`` makes them of what is given."""
    name = config["schedule"]
    try:
        cls = getattr(diffusers, name)
        theirs = cls(**{key: config[key] for key in defaults_of(name) if key in config})
        theirs.set_timesteps(**given)
    except _FAILURES as error:
        raise ValueError(f"{name} refuses this: {' '.join(str(error).split())}") from error
    # Classes of two evaluations a step repeat all but the first.
    at = slice(None) if theirs.order == 1 else [0, *range(1, len(theirs.timesteps), 2)]
    seen = theirs.timesteps[at]
    if SCHEDULES[name] == "timesteps":
        return (seen.double() + 1) / config["num_train_timesteps"], seen
    sigma = theirs.sigmas[: len(theirs.timesteps)][at].double()
    if isinstance(path, Linear):
        return sigma, seen
    t = path.time_at_log_snr(-2.0 * sigma.log()).nan_to_num(1.0)
    known = path.coefficients(t)
    if not torch.allclose(known.sigma / known.alpha, sigma, rtol=1e-3):
        raise ValueError(f"{name} has noise levels that are none of its betas")
    return t, seen
