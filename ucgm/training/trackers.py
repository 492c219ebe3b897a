"""Trackers beside metrics.jsonl: wandb and tensorboard, through accelerate.

    wandb        project WANDB_PROJECT or ``ucgm``, files in RUN/wandb; WANDB_MODE=offline writes
                 there only, for ``wandb sync`` later.  The id of the run is kept in RUN/wandb_id,
                 and a training that is continued continues its curves.
    tensorboard  files in RUN/tensorboard; what lies behind the checkpoint that a training is
                 continued from is hidden.

Numbers have the absolute step.  accelerate drops a tracker whose library is missing and says
nothing, so it is asked for here, before anything is built.
"""

import importlib.util
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ucgm.runtime.files import write_atomic

TRACKERS = ("wandb", "tensorboard")
ID_FILE = "wandb_id"


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is unknown or not installed (ValueError, with the remedy)."""
    if name is None:
        return
    if name not in TRACKERS:
        raise ValueError(f"train.tracker must be {' or '.join(TRACKERS)} or null, got {name!r}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"train.tracker is {name}, which is not installed: pip install {name}")


def start_tracker(
    accelerator: Accelerator, name: str, run_dir: Path, step: int, settings: dict[str, Any]
) -> None:
    """Open the run of the tracker ``name``, or continue it after ``step``; all processes may call.

    The accelerator was made with ``log_with=name`` and ``run_dir`` as its project folder; the
    ``settings`` are the configuration, flat.

    Raises:
        ValueError: wandb is not logged in.
    """
    if name == "tensorboard":
        # It takes plain values, and its table of settings is one more folder every time.
        plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in settings.items()}
        options = {"tensorboard": {"purge_step": step + 1}}
        accelerator.init_trackers("tensorboard", None if step else plain, options)
        return
    import wandb

    project = os.environ.get("WANDB_PROJECT", "ucgm")
    options = {"dir": str(run_dir), "name": run_dir.name, "resume": "allow"}
    if accelerator.is_main_process:
        options["id"] = _wandb_id(run_dir)
    try:
        accelerator.init_trackers(project, settings, {"wandb": options})
    except wandb.Error as error:
        raise ValueError(
            f"wandb does not start ({error}): run `wandb login`, or set WANDB_MODE=offline"
        ) from error


def track_picture(accelerator: Accelerator, path: Path, step: int) -> None:
    """Show an image file in the tracker, if there is one, in the row of pictures ``preview``."""
    for tracker in accelerator.trackers:
        with Image.open(path) as picture:
            if tracker.name == "wandb":
                tracker.log_images({"preview": [picture]}, step=step)
            else:
                pixels = np.asarray(picture.convert("RGB"))[None]
                tracker.log_images({"preview": pixels}, step=step, dataformats="NHWC")


def _wandb_id(run_dir: Path) -> str:
    """The id of this run folder, drawn once."""
    path = run_dir / ID_FILE
    if not path.exists():
        write_atomic(path, uuid.uuid4().hex[:12] + "\n")
    return path.read_text().strip()
