"""Runs of a study: what they share, and their end, before which they may have been stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ucgm.runs.checkpoint import newest_checkpoint
from ucgm.runs.config import Config
from ucgm.runs.layers import training_config
from ucgm.training.loop import train


def train_section(steps: int, batch: int, seed: int, init: Path | None) -> dict[str, Any]:
    """The section ``train`` of a run without pictures, whose one checkpoint is its last."""
    return {
        "steps": steps,
        "global_batch": batch,
        "seed": seed,
        "init": None if init is None else str(init),
        "log_every": 100,
        "preview_every": 10**6,
        "checkpoint_every": steps,
        "keep_checkpoints": 1,
    }


def train_row(settings: Mapping[str, Any], shared: Mapping[str, Any], folder: Path) -> None:
    """Train a row of a study: its preset, above it what rows share, above that its settings."""
    objective = dict(settings["objective"])
    preset = {"objective": {"preset": objective.pop("preset")}}
    layers = [preset, dict(shared), {**settings, "objective": objective}]
    config, _ = training_config(layers, folder)
    # What is fitted to a preset must not replace the batch that the rows are compared at.
    assert config.train.global_batch == shared["train"]["global_batch"], config.train
    train_to_the_end(config, folder)


def train_to_the_end(config: Config, folder: Path) -> None:
    """Train, or train on, unless the last step is done.

    Raises:
        InterruptedError: the training was told to stop, and nothing is to be measured of it.
    """
    if _steps(folder) < config.train.steps:
        train(config, folder)
    if (done := _steps(folder)) < config.train.steps:
        raise InterruptedError(f"{folder} was stopped at step {done}: start again to go on")


def _steps(folder: Path) -> int:
    """Steps that are done."""
    found = newest_checkpoint(folder)
    return 0 if found is None else found[1]["step"]
