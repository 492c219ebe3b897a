"""What diffusers gives us: configurations of other schedulers, and generators.

The solver of a configuration is dropped, with its clipping of estimates and its last noise level:
ours end at the data.  Its path and its times are kept, or it is refused: nothing that would change
the meaning of the model's output is dropped in silence.  The name of the class is kept as
``schedule``, and its settings beside ours, see :mod:`ucgm.integrations.times`.  The configuration
of a scheduler object does not name its class, and marks default values, which another class would
replace by its own; here they are read as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor

from ucgm.integrations.discrete import DiscreteVP
from ucgm.integrations.times import SCHEDULES, defaults_of
from ucgm.runs.config import from_dict
from ucgm.runtime.earlier import current_names
from ucgm.runtime.randomness import RowRandom, as_random
from ucgm.transport import Linear, Transport

Generators = RowRandom | torch.Generator | Sequence[torch.Generator] | None

_PREDICTIONS: dict[str, Literal["eps", "v", "x"]] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x",
}
# Those with a known path, whose timesteps or noise are of use to their own solver alone.
OTHERS = ("PNDMScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
          "SASolverScheduler")  # fmt: skip
_NEUTRAL = {"invert_sigmas": False, "stochastic_sampling": False, "timestep_type": "discrete",
            "tau_func": None, "solver_p": None}  # fmt: skip
_OURS = {"stochasticity", "extrapolation", "time_variable", "integration", "warp", "gap"}


def own_config(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a :class:`UCGMScheduler` for the model of another scheduler, or its own.

    Args:
        given: of any scheduler; one of ours that went through another class is ours.
        changes: settings that replace those.

    Raises:
        ValueError: the model is on a path, or in a form, that this scheduler does not know.
    """
    config: dict[str, Any] = current_names(dict(given))
    ours = config.get("_class_name") == "UCGMScheduler" or len(_OURS & config.keys()) > 2
    name = "UCGMScheduler" if ours else _class_of(config)
    values = (defaults_of(name) if not ours else {}) | config
    values |= {key: value for key, value in changes.items() if key in values}
    own_grid = {**values, **changes}.get("schedule", None if ours else name) is None
    if own_grid and values.get("use_dynamic_shifting"):
        if values.get("time_shift_type", "exponential") != "exponential":
            raise ValueError(f"{name} with time_shift_type linear has no form with schedule=None")
    if not ours:
        values |= _path_of(name, values)
        if name in OTHERS and not own_grid:
            raise ValueError(f"the timesteps of {name} belong to its solver: add schedule=None")
        values |= {"schedule": None if own_grid else name}
        values["use_flow_sigmas"] = own_grid or bool(values.get("use_flow_sigmas"))
    # The shift has one name here, which the scheduler writes under the other, too.
    hidden = ("flow_shift", "_use_default_values", "_class_name", "_diffusers_version")
    return {key: value for key, value in values.items() if key not in hidden}


def _class_of(config: Mapping[str, Any]) -> str:
    """The name of the class of a foreign configuration, by its keys where it is not written."""
    name, keys = config.get("_class_name"), {key for key in config if key[:1] != "_"}
    if isinstance(name, str):
        same = [name]
    else:
        known = (n for n in dir(diffusers) if n.endswith("Scheduler") and "Parallel" not in n)
        same = [n for n in known if defaults_of(n).keys() == keys]
    served = [n for n in same if n in (*SCHEDULES, *OTHERS)]
    if not same or (served and len(same) > 1):
        which = f"may be of {', '.join(same)}" if same else "is of no class that can be told"
        raise ValueError(
            f"this configuration {which}: add the name of its class, "
            '{**scheduler.config, "_class_name": type(scheduler).__name__}'
        )
    if not served:
        raise ValueError(
            f"{' or '.join(same)} is none that UCGMScheduler knows the path and timesteps of: name "
            "the path of its model with UCGMScheduler(transport=...)"
        )
    return served[0]


def _path_of(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """prediction_type and shift of the model of a foreign scheduler, if all else is understood."""
    known = set().union(*map(defaults_of, (*SCHEDULES, *OTHERS)))
    for key, value in values.items():
        off = value is None or value is False
        strange = key not in known and key[:1] != "_" and not off
        if strange or (key in _NEUTRAL and value != _NEUTRAL[key]):
            raise ValueError(f"{name} with {key} = {value} is not supported by UCGMScheduler")
    if str(values.get("variance_type")).startswith("learned"):
        raise ValueError(f"{name} with a learned variance is not supported by UCGMScheduler")
    if SCHEDULES.get(name) == "flow":
        return {"prediction_type": "flow_prediction"}
    kind, flow = values["prediction_type"], bool(values.get("use_flow_sigmas"))
    if flow != (kind == "flow_prediction"):
        raise ValueError(
            f"{name} with use_flow_sigmas = {flow} and prediction_type {kind} is no model that "
            "UCGMScheduler knows"
        )
    return {"shift": values["flow_shift"]} if flow else {"shift": 1.0}


def transport_of(config: Mapping[str, Any]) -> Transport:
    """The path a model was trained on.

    Raises:
        ValueError: a prediction type that is not known, with those that are.
    """
    if config["transport"] is not None:
        given = config["transport"]
        if isinstance(given, str):
            given = {"class_path": f"ucgm.transport.{given}"}
        return from_dict(Transport, current_names(given), "scheduler.transport")
    kind = config["prediction_type"]
    if kind == "flow_prediction":
        return Linear()
    if not isinstance(kind, str) or kind not in _PREDICTIONS:
        raise ValueError(
            f"prediction_type {kind!r} is not supported: use flow_prediction, "
            f"{', '.join(_PREDICTIONS)}, or name a transport"
        )
    betas = config["trained_betas"]
    betas = betas.tolist() if hasattr(betas, "tolist") else betas
    zero = config["rescale_betas_zero_snr"]
    exact = zero and SCHEDULES.get(str(config["schedule"])) == "timesteps"
    return DiscreteVP(
        prediction=_PREDICTIONS[kind],
        num_levels=config["num_train_timesteps"],
        schedule=config["beta_schedule"],
        beta=(config["beta_start"], config["beta_end"]),
        betas=betas,
        zero_terminal=zero,
        terminal=1e-9 if exact else 2.0**-12,
    )


def random_of(generator: Generators, seed: int | None, like: Tensor) -> RowRandom:
    """Fresh noise for the rows of ``like``: row by row where there is a generator for each.

    Args:
        generator: keys, one generator for all, one for each row, or None.
        seed: used with the row number when there is no generator; None: the global generator.
        like: (B, ...), whose device it is for.
    """
    if isinstance(generator, Sequence):
        return RowRandom(torch.cat([as_random(g, 1, like.device).keys for g in generator]))
    if generator is None and seed is not None:
        return RowRandom.for_samples(seed, torch.arange(len(like), device=like.device))
    return as_random(generator, len(like), like.device)
