"""Writing a checkpoint: whole or not at all, in a thread, while the training goes on.

:func:`host_copies` takes what is to be saved to the host; on a GPU the copies go to pinned memory
in the order of the stream, so that the next step may start at once and change the weights.  A
:class:`Writer` waits for them, serialises, hashes, syncs and renames in a thread.

    .tmp-step_N   while it is written         a crash leaves it, the next writer removes it
    step_N        renamed after every byte is on the disk
    latest        names step_N after that; older checkpoints go last, by a rename to .old-step_K

At every instant ``latest`` names a checkpoint that is whole.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ucgm.runtime.files import sha256, sync, write_atomic
from ucgm.runtime.reading import listed, read_json, reading
from ucgm.runtime.sharding import gather, load_shard

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
StateDict = dict[str, Tensor]


@torch.no_grad()
def host_copies(values: Mapping[str, Tensor], keep: bool = True) -> StateDict:
    """Copies of tensors (any shape) on the host; wait for the device before reading them.

    Sharded ones are gathered one by one, for which every process must call this; those that need
    no copy do so with ``keep=False`` and get an empty result.
    """
    state: StateDict = {}
    for name, value in values.items():
        full = gather(value.detach())
        if not keep:
            continue
        if full.device.type == "cuda":
            pinned = torch.empty(full.shape, dtype=full.dtype, pin_memory=True)
            state[name] = pinned.copy_(full, non_blocking=True)
        else:
            state[name] = full.clone(memory_format=torch.contiguous_format).cpu()
    return state


def save_weights(network: nn.Module, path: Path) -> None:
    """All parameters and persistent buffers of a network that is not sharded, as safetensors."""
    save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, path)


def optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
) -> dict[str, Tensor]:
    """State of the optimizer, as ``parameter/key``; its settings are the configuration's."""
    found = {}
    for parameter, name in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"{key} of {name} is no tensor"
            found[f"{name}/{key}"] = value
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], path: Path
) -> None:
    """Read what :func:`optimizer_state` gave, tensor by tensor, from the file of a checkpoint.

    Raises:
        ValueError: a state of other parameters.
    """
    kept: dict[nn.Parameter, StateDict] = {parameter: {} for parameter in names}
    by_name = {name: parameter for parameter, name in names.items()}
    with reading(path), safe_open(path, "pt") as file:
        for full in file.keys():
            name, _, key = full.rpartition("/")
            if name not in by_name:
                raise ValueError(f"{path} is of another network: {name!r} is unknown to this one")
            parameter, value = by_name[name], file.get_tensor(full)
            if value.shape == parameter.shape:
                placed = torch.zeros_like(parameter, dtype=value.dtype)
                load_shard(placed, value)
                value = placed
            kept[parameter][key] = value
    packed = optimizer.state_dict()
    order = [p for group in optimizer.param_groups for p in group["params"]]
    packed["state"] = {i: kept[p] for i, p in enumerate(order) if kept[p]}
    optimizer.load_state_dict(packed)


def step_folder(step: int) -> str:
    """The checkpoint of ``step``, relative to the run folder."""
    return f"{CHECKPOINTS}/step_{step:07d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint."""
    return int(folder.name.removeprefix("step_"))


def save_checkpoint(
    run_dir: Path,
    step: int,
    states: Mapping[str, StateDict],
    facts: dict[str, Any],
    keep: int,
    milestone_every: int | None = None,
) -> Path:
    """Write the checkpoint of ``step`` so that a crash at any instant leaves the one before.

    Args:
        run_dir: the run folder.
        step: optimizer steps done.
        states: file stem -> tensors on the host.
        facts: JSON values kept in the manifest (shape, classes, EMA updates).
        keep: number of newest checkpoints to keep.
        milestone_every: checkpoints of multiples of this step are kept for ever.

    Raises:
        Exception: the disk is full or gone; what was there before is untouched.
    """
    folder = run_dir / CHECKPOINTS
    final = run_dir / step_folder(step)
    temporary = folder / f".tmp-{final.name}"
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    try:
        _fill_folder(temporary, states, {"step": step, **facts})
    except Exception:  # an OSError, or that of safetensors
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    put_in_place(temporary, final)
    thin(run_dir, step, keep, milestone_every)
    return final


def put_in_place(temporary: Path, final: Path) -> None:
    """Make a whole checkpoint on the disk the newest one of its run."""
    folder = final.parent
    folder.mkdir(exist_ok=True)
    if final.exists():  # damaged, or the run was continued from one before it
        os.replace(final, folder / f".old-{final.name}")
    os.replace(temporary, final)
    sync(folder)
    write_atomic(folder.parent / "latest", final.name + "\n")


def spare_steps(steps: Sequence[int], keep: int, milestone_every: int | None) -> list[int]:
    """Those of the ``steps`` of checkpoints, oldest first, that are neither new nor milestones."""
    return [s for s in steps[:-keep] if milestone_every is None or s % milestone_every]


def thin(run_dir: Path, step: int, keep: int, milestone_every: int | None) -> None:
    """Delete the checkpoints that ``step`` makes spare.

    Later ones are damaged: the run was continued from one before them, and makes them again.
    """
    done = [n for path in checkpoints_of(run_dir) if (n := step_of(path)) <= step]
    for spare in spare_steps(done, keep, milestone_every):
        old = run_dir / step_folder(spare)
        os.replace(old, old.with_name(f".old-{old.name}"))
    _sweep(run_dir / CHECKPOINTS)


def _fill_folder(folder: Path, states: Mapping[str, StateDict], facts: dict[str, Any]) -> None:
    """Tensors and the manifest with their sizes and digests, all on the disk on return."""
    folder.mkdir()
    files = {}
    for name, state in states.items():
        path = folder / f"{name}.safetensors"
        write_atomic(path, lambda temporary, state=state: save_file(state, temporary))
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_atomic(folder / MANIFEST, json.dumps({**facts, "files": files}, indent=1))
    sync(folder)


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files all agree with it.

    Raises:
        OSError: a file is there and cannot be read.
        ValueError: a file is missing, truncated or changed.
    """
    try:
        manifest = read_json(folder / MANIFEST, {"step": int, "files": {}})
        for name, facts in manifest["files"].items():
            if Path(name).name != name or not isinstance(facts, dict):
                raise ValueError(f"{name!r:.60} is no file of it")
            with reading(path := folder / name):
                if path.stat().st_size != facts.get("bytes") or sha256(path) != facts.get("sha256"):
                    raise ValueError(f"{name} is truncated or changed")
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"checkpoint {folder} is damaged: {error}") from error
    return manifest


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Folders of the checkpoints of a run, oldest first, whole or not.

    Raises:
        PermissionError: the folder may not be read.
    """
    found = [p for p in listed(run_dir / CHECKPOINTS, "step_*") if p.name[5:].isdecimal()]
    return sorted(found, key=step_of)


def _sweep(folder: Path) -> None:
    """Remove what a crash left half written or half deleted."""
    for pattern in (".tmp-step_*", ".old-step_*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


class Writer:
    """A thread that writes checkpoints of ``run_dir``, one thing at a time.

    Use as a context: leaving it waits for the last one, whatever ended the training.  An error of
    the thread is raised by the next call.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._pool = ThreadPoolExecutor(1, "ucgm-checkpoint-writer")
        self._last: Future[None] | None = None

    def submit(self, *jobs: Callable[[], object]) -> None:
        """Run ``jobs`` in order when the device has done what was asked of it so far."""
        self.join()
        ready = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            ready = torch.cuda.Event()
            ready.record()

        def run() -> None:
            if ready is not None:
                ready.synchronize()
            for job in jobs:
                job()

        self._last = self._pool.submit(run)

    def check(self) -> None:
        """Raise what went wrong, without waiting.

        Raises:
            RuntimeError: the last thing could not be written.
        """
        if self._last is not None and self._last.done():
            self.join()

    def join(self) -> None:
        """Wait until everything is on the disk; raises as :meth:`check`."""
        last, self._last = self._last, None
        error = last.exception() if last is not None else None
        if error is not None:
            raise RuntimeError(
                f"a checkpoint of {self.run_dir} could not be written: {error.__cause__ or error}. "
                "The checkpoints before it are untouched. Free space or lower "
                "train.keep_checkpoints, and run the same command again: it continues from the "
                "newest one."
            ) from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:  # otherwise the error that is on its way out is the one to show
            self.join()
