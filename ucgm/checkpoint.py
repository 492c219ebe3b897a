"""The run folder: what it holds, how it survives a crash, and how it is read.

    config.yaml                    the resolved configuration
    metrics.jsonl                  one line per period
    latest                         name of the newest checkpoint
    teacher.safetensors            frozen teacher of a few-step training
    ema/                           snapshots, and averages of any length made of them afterwards
    samples/step_0010000.png       previews
    checkpoints/step_0010000/      network, ema[, target] .safetensors, optimizer.pt, manifest.json

A checkpoint is written under a temporary name, synced, and renamed; its manifest has the size and
SHA-256 of every file and is checked before anything is loaded.  There is no random state to save:
data order, noise, times and dropout masks are functions of (seed, step, row).  Weights are
safetensors, the optimizer is read with ``weights_only=True``: loading runs no code.
"""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ucgm.config import Config, read_config

CHECKPOINTS = "checkpoints"
EMA_FOLDER = "ema"
MANIFEST = "manifest.json"
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


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a small file in one step."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    _sync(temporary)
    os.replace(temporary, path)


def save_weights(network: nn.Module, path: Path) -> None:
    """All parameters and persistent buffers as safetensors."""
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(state, path)


def save_checkpoint(
    run_dir: Path,
    step: int,
    networks: dict[str, nn.Module],
    optimizer: dict[str, Any],
    facts: dict[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of ``step`` so that a crash at any instant leaves the one before.

    Args:
        run_dir: the run folder.
        step: optimizer steps done.
        networks: file stem -> module.
        optimizer: its state_dict.
        facts: JSON values kept in the manifest (shape, classes, EMA updates).
        keep: number of newest checkpoints to keep.
    """
    folder = run_dir / CHECKPOINTS
    final = folder / f"step_{step:07d}"
    temporary = folder / f".tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, network in networks.items():
        save_weights(network, temporary / f"{name}.safetensors")
    torch.save(optimizer, temporary / "optimizer.pt")
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in temporary.iterdir()}
    manifest = {"step": step, **facts, "files": files}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    _sync(folder)
    write_text_atomically(run_dir / "latest", final.name + "\n")
    for old in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(old)
    return final


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
    """Load safetensors into ``network``; names and shapes must agree.

    Args:
        network: is modified.
        path: the file.
        allow_missing: prefixes of parameters that may keep their initial value.
    """
    state: dict[str, Tensor] = load_file(path)
    own = network.state_dict()
    missing = [k for k in own.keys() - state.keys() if not k.startswith(allow_missing or ("\0",))]
    extra = sorted(state.keys() - own.keys())
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or wrong:
        facts = [
            f"{len(part)} {what} (first: {sorted(part)[0]})"
            for what, part in (
                ("missing", missing),
                ("unknown", extra),
                ("of another shape", wrong),
            )
            if part
        ]
        raise ValueError(
            f"{path} does not fit the network of this configuration: {', '.join(facts)}. "
            "Use the model section of the run it came from."
        )
    network.load_state_dict(state, strict=False)


def read_facts(path: Path) -> dict[str, Any]:
    """What the header of a file of RUN/ema says: step, updates and std.

    Raises:
        ValueError: not a whole file of this kind.
    """
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["facts"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, and make an average again with `ucgm ema`"
        ) from error


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
        files = [Path(n) for n in sorted(manifest["files"]) if not n.startswith("log_variance")]
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
    """The network of a run folder.

    Args:
        run_dir: the folder.
        step: checkpoint; None: the newest intact one.
        weights: ``ema``, ``network`` for the raw weights, or an average of ``ucgm ema``.
        device: where to put the network.

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
    network = config.model.build(shape, manifest["num_classes"])
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
