"""Reading a run folder: what it holds, its newest whole checkpoint, its weights.

    config.yaml                    the resolved configuration
    metrics.jsonl                  one line per period
    latest                         name of the newest checkpoint
    .lock                          held by the training that is running in it
    teacher.safetensors            weights it started from, which are its frozen teacher
    ema/                           snapshots, and averages of any length made of them afterwards
    samples/step_0010000.png       previews
    checkpoints/step_0010000/      network, ema[, target], optimizer .safetensors, manifest.json

Checkpoints are written by :mod:`ucgm.runs.saving`.  A manifest has the size and SHA-256 of every
file and is checked before anything is loaded.  There is no random state to save: data order, noise,
times and dropout masks are functions of (seed, step, row).  Everything is safetensors, with whole
tensors by name: loading runs no code, and neither the number of processes nor whether they shard
the weights is part of the format.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from ucgm.runs.averages import EMA_FOLDER, read_facts
from ucgm.runs.config import Config, read_config
from ucgm.runs.saving import CHECKPOINTS, MANIFEST
from ucgm.runtime.files import sha256
from ucgm.runtime.sharding import load_shard

# Zero-initialised inputs that a network may have and the weights it starts from may lack.
OPTIONAL_INPUTS = ("h_embedder.", "h_fourier.", "h_noise.", "h_gain", "g_embedder.")


@dataclass(frozen=True)
class Run:
    """A trained network, ready to sample from.

    Attributes: network in evaluation mode; the run's configuration; the step of the checkpoint;
    which weights they are (``ema`` or ``network``); SHA-256 of their file; shape (C, H, W) of the
    data and number of classes.
    """

    run_dir: Path
    config: Config
    network: nn.Module
    step: int
    weights: str
    digest: str
    shape: tuple[int, int, int]
    num_classes: int


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files all agree with it.

    Raises:
        ValueError: a file is missing, truncated or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, facts in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != facts["bytes"] or sha256(path) != facts["sha256"]:
                raise ValueError(f"{name} is truncated or changed")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {folder} is damaged: {error}") from error
    return manifest


def newest_checkpoint(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint and its manifest; a damaged one is reported and passed over.

    Raises:
        ValueError: there are checkpoints and none is intact.
    """
    folders = sorted((run_dir / CHECKPOINTS).glob("step_*"), reverse=True)
    for folder in folders:
        try:
            manifest = verify(folder)
        except ValueError as error:
            warnings.warn(f"{error}; falling back to the one before", stacklevel=2)
            continue
        return folder, manifest
    if folders:
        raise ValueError(
            f"all {len(folders)} checkpoints of {run_dir} are damaged; restore one from a backup, "
            "or delete the folder to start again"
        )
    return None


def load_weights(network: nn.Module, path: Path, allow_missing: tuple[str, ...] = ()) -> None:
    """Load safetensors into ``network``, which may be sharded; names and shapes must agree.

    Parameters with a prefix of ``allow_missing`` may keep their initial value.
    """
    own = network.state_dict()
    with safe_open(path, "pt") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        _check_names({k: tuple(v.shape) for k, v in own.items()}, theirs, path, allow_missing)
        for name in theirs:
            load_shard(own[name], file.get_tensor(name))


def _check_names(
    own: dict[str, tuple[int, ...]],
    theirs: dict[str, tuple[int, ...]],
    path: Path,
    allow_missing: tuple[str, ...],
) -> None:
    """Refuse names and shapes that differ, apart from the missing ones that are allowed."""
    missing = [k for k in own.keys() - theirs.keys() if not k.startswith(allow_missing or ("\0",))]
    extra = sorted(theirs.keys() - own.keys())
    wrong = [k for k in own.keys() & theirs.keys() if own[k] != theirs[k]]
    parts = (("missing", missing), ("unknown", extra), ("of another shape", wrong))
    facts = [f"{len(part)} {what} (first: {sorted(part)[0]})" for what, part in parts if part]
    if facts:
        raise ValueError(
            f"{path} does not fit the network of this configuration: {', '.join(facts)}. "
            "Use the model section of the run it came from."
        )


def _find_weights(
    run_dir: Path, folder: Path, manifest: dict[str, Any], weights: str
) -> tuple[Path, int, str]:
    """File, training step and SHA-256 of named weights: a checkpoint's, or an average of RUN/ema.

    Raises:
        ValueError: there are none of this name, with what there is.
    """
    name = f"{weights}.safetensors"
    if name in manifest["files"]:
        return folder / name, manifest["step"], manifest["files"][name]["sha256"]
    path = run_dir / EMA_FOLDER / name
    if path.parent != run_dir / EMA_FOLDER or not path.is_file():
        no_weights = ("log_variance", "optimizer")
        files = [Path(n) for n in sorted(manifest["files"]) if not n.startswith(no_weights)]
        files += sorted((run_dir / EMA_FOLDER).glob("std_*"))
        there = ", ".join(p.stem for p in files if p.suffix == ".safetensors")
        raise ValueError(
            f"{run_dir} has no weights {weights!r}; there are {there}. `ucgm ema` makes averages "
            "of other lengths"
        )
    return path, int(read_facts(path)["step"]), sha256(path)


def load_run(
    run_dir: str | Path, step: int | None = None, weights: str = "ema", device: str = "cpu"
) -> Run:
    """The network of a run folder, on ``device``.

    Args:
        run_dir: the folder.
        step: checkpoint; None: the newest intact one.
        weights: ``ema``, ``network`` for the raw weights, or an average of ``ucgm ema``.
        device: of the network.

    Raises:
        ValueError: no such folder, checkpoint or weights, with what there is.
    """
    run_dir = Path(run_dir)
    config = read_config(run_dir / "config.yaml")
    if step is None:
        found = newest_checkpoint(run_dir)
        if found is None:
            raise ValueError(f"{run_dir} has no checkpoint yet")
        folder, manifest = found
    else:
        folder = run_dir / CHECKPOINTS / f"step_{step:07d}"
        if not folder.is_dir():
            there = [p.name for p in sorted((run_dir / CHECKPOINTS).glob("step_*"))]
            raise ValueError(f"{run_dir} has no checkpoint of step {step}; there are {there}")
        manifest = verify(folder)
    path, trained, digest = _find_weights(run_dir, folder, manifest, weights)
    if step not in (None, trained):
        raise ValueError(f"the weights {weights} are of step {trained}: leave the checkpoint out")
    shape = tuple(manifest["shape"])
    network: nn.Module = config.model.build(shape, manifest["num_classes"])
    load_weights(network, path)
    return Run(
        run_dir=run_dir,
        config=config,
        network=network.to(device).eval().requires_grad_(False),
        step=trained,
        weights=weights,
        digest=digest,
        shape=shape,
        num_classes=manifest["num_classes"],
    )
