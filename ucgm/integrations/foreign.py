"""What diffusers gives us: configurations of other schedulers, and generators.

The solver of a configuration is dropped.  Its path is kept or refused: nothing that would change
the meaning of the model's output is dropped in silence.  The configuration of a scheduler object
does not name its class, and marks default values, which another class would replace by its own;
here they are read as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ucgm.integrations.discrete import DiscreteVP
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
_SHIFTS = ("use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
           "max_image_seq_len")  # fmt: skip
_BETAS = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")


def own_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a :class:`UCGMScheduler` for the model of another scheduler, or its own.

    Raises:
        ValueError: the model is on a path, or in a form, that this scheduler does not know.
    """
    name = str(config.get("_class_name", "a scheduler"))
    if "extrapolation" in config:
        return current_names(dict(config))
    kept: dict[str, Any] = {"num_train_timesteps": config.get("num_train_timesteps", 1000)}
    for key, neutral in (("invert_sigmas", False), ("shift_terminal", None)):
        if config.get(key, neutral) not in (neutral, 0):
            raise ValueError(f"{name} with {key} = {config[key]} is not supported by UCGMScheduler")
    kept |= {key: config[key] for key in _SHIFTS if config.get(key) is not None}
    if kept.get("use_dynamic_shifting") and config.get("time_shift_type") == "linear":
        raise ValueError(f"{name} with time_shift_type linear is not supported by UCGMScheduler")
    prediction = config.get("prediction_type")
    flow = config.get("use_flow_sigmas") or ("shift" in config and "beta_schedule" not in config)
    if flow or prediction == "flow_prediction":
        shift = config.get("shift", config.get("flow_shift"))
        return kept | {
            "prediction_type": "flow_prediction",
            "shift": 1.0 if shift is None else shift,
        }
    if "beta_schedule" not in config:
        raise ValueError(
            f"{name} is neither a flow matching scheduler nor one with betas: name the path of its "
            "model with UCGMScheduler(transport=...)"
        )
    kept["prediction_type"] = prediction or "epsilon"
    return kept | {key: config[key] for key in _BETAS if config.get(key) is not None}


def transport_of(config: Mapping[str, Any]) -> Transport:
    """The path a model was trained on.

    Raises:
        ValueError: a prediction type that is not known, with those that are.
    """
    if config["transport"] is not None:
        given = config["transport"]
        if isinstance(given, str):
            given = {"class_path": f"ucgm.transport.{given}"}
        return from_dict(Transport, current_names(dict(given)), "scheduler.transport")
    kind = config["prediction_type"]
    if kind == "flow_prediction":
        return Linear()
    if kind not in _PREDICTIONS:
        raise ValueError(
            f"prediction_type {kind!r} is not supported: use flow_prediction, "
            f"{', '.join(_PREDICTIONS)}, or name a transport"
        )
    betas = config["trained_betas"]
    return DiscreteVP(
        prediction=_PREDICTIONS[kind],
        num_levels=config["num_train_timesteps"] if betas is None else len(betas),
        schedule=config["beta_schedule"],
        beta=(config["beta_start"], config["beta_end"]),
        betas=None if betas is None else tuple(betas),
        zero_terminal=config["rescale_betas_zero_snr"],
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
