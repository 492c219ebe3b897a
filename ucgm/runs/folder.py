"""Whose folder a run folder is, and whether a training may go on in it."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from ucgm.runs.config import Config, differences, read_config, write_config
from ucgm.runs.saving import save_weights
from ucgm.runtime.files import write_atomic

# The weights a run started from; they are also its frozen teacher.
START = "teacher.safetensors"


# Settings that may differ when a run is continued: they do not change what is learned.
_FREE_TO_CHANGE = (
    "model.gradient_checkpointing",
    "train.accumulation",
    "train.checkpoint_every",
    "train.compile",
    "train.keep_checkpoints",
    "train.log_every",
    "train.max_skipped",
    "train.milestone_every",
    "train.num_workers",
    "train.preview_every",
    "train.sharding",
    "train.tracker",
    "data.path",
    "data.vae_path",
    "sampler.",
    "guidance.",
)


def _knows_its_end(config: Config) -> bool:
    """Whether a step depends on how many there will be; without that a run may be made longer."""
    objective = config.objective
    moving = objective.anchor_schedule != "constant" or objective.tangent_warmup > 0
    return moving or config.optimizer.schedule == "cosine"


def refuse_another(config: Config, run_dir: Path) -> None:
    """Refuse the run folder of another configuration, and a folder that is none."""
    path = run_dir / "config.yaml"
    if path.exists():
        old = read_config(path)
        free = _FREE_TO_CHANGE
        if not (_knows_its_end(old) or _knows_its_end(config)):
            free += ("train.steps",)
        found = [d for d in differences(old, config) if not d.startswith(free)]
        if found:
            raise ValueError(
                f"{run_dir} belongs to another configuration ({'; '.join(found[:3])}"
                f"{'; ...' if len(found) > 3 else ''}): choose another run_dir"
            )
    # A name with a dot is the lock, or what a crash left of the first moments of a run.
    elif run_dir.exists() and any(not p.name.startswith(".") for p in run_dir.iterdir()):
        raise ValueError(f"{run_dir} is not empty and not a run folder: choose another run_dir")


@contextlib.contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Keep every other training out of ``run_dir``; a process that dies lets go.

    Raises:
        ValueError: another training is in there.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some file systems of clusters have no locks; then nobody looks after the user.
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                raise ValueError(
                    f"another training is running in {run_dir} ({file.read().strip()}): wait for "
                    f"it, stop it, or choose another run_dir; if there is none, delete {path}"
                ) from None
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def create_run(config: Config, run_dir: Path, network: nn.Module) -> None:
    """Make ``run_dir`` this configuration's folder, with the weights it starts from."""
    write_atomic(run_dir / "config.yaml", lambda path: write_config(config, path))
    (run_dir / "samples").mkdir(exist_ok=True)
    kept = run_dir / START
    for left in run_dir.glob(f".{START}.*.tmp"):  # by a crash
        left.unlink()
    if config.train.init is not None and not kept.exists():
        write_atomic(kept, lambda path: save_weights(network, path))
