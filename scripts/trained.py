"""Runs of a study, which may have been stopped in the middle."""

from pathlib import Path

from ucgm.runs.checkpoint import newest_checkpoint
from ucgm.runs.config import Config
from ucgm.training.loop import train


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
