"""``ucgm.train``: a training in Python, as the command line does it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ucgm.generation.run import Run, load_run
from ucgm.runs.config import Config
from ucgm.runs.layers import training_config
from ucgm.training import loop


def train(config: Config | Mapping[str, Any], run_dir: str | Path) -> Run:
    """Train, or continue the training in ``run_dir``; returns the trained run.

    Args:
        config: a complete configuration; or settings as a file has them, such as
            ``{"data": {"class_path": "Images", "path": "photos"}}``, under which lie those of the
            preset and those that fit data and device.
        run_dir: folder of the run.

    Raises:
        ValueError: a run folder of another configuration, or settings that do not fit together.
        RuntimeError: too many steps in a row without a finite loss and gradient, or a checkpoint
            that could not be written.
        InterruptedError: the training was told to stop by a signal; it has saved a checkpoint, and
            the same call goes on.  A script would otherwise go on with half a training.
    """
    if not isinstance(config, Config):
        config, _ = training_config([dict(config)], Path(run_dir))
    run = load_run(loop.train(config, run_dir))
    if run.step < config.train.steps:
        raise InterruptedError(
            f"{run_dir} was told to stop at step {run.step:,} of {config.train.steps:,}: the same "
            "call goes on"
        )
    return run
