"""Reading a run folder: what it holds, its newest whole checkpoint, its weights.

    config.yaml                    the resolved configuration
    metrics.jsonl                  one line per period
    latest                         name of the newest checkpoint
    .lock                          held by the training that is running in it
    teacher.safetensors            weights it started from, which are its frozen teacher
    teachers.json                  where the teachers are other runs: which weights
    encoders.json                  encoders whose features it was trained on, if any
    ema/                           snapshots, and averages of any length made of them afterwards
    samples/step_0010000.png       previews
    checkpoints/step_0010000/      network, ema[, target], optimizer .safetensors, manifest.json

Checkpoints are written by :mod:`ucgm.runs.saving`.  A manifest has the size and SHA-256 of every
file and is checked before anything is loaded.  There is no random state to save: data order, noise,
times and dropout masks are functions of (seed, step, row).  Everything is safetensors, with whole
tensors by name: loading runs no code, and neither the number of processes nor whether they shard
the weights is part of the format.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from safetensors import safe_open
from torch import nn

from ucgm.data.labels import MOST_CLASSES
from ucgm.runs.averages import EMA_FOLDER, read_snapshot
from ucgm.runs.config import Config, read_config
from ucgm.runs.remote import local_run
from ucgm.runs.saving import MANIFEST, checkpoints_of, step_folder, verify
from ucgm.runtime.files import sha256
from ucgm.runtime.reading import listed, reading
from ucgm.runtime.sharding import load_shard
from ucgm.runtime.values import Range, Side, checked

# Prefixes of the weights that are a table of classes.
LABEL_TABLES = ("y_embedder.", "emb_label.")


@dataclass(frozen=True)
class Run:
    """A trained network, ready to sample from.

    Attributes: network in evaluation mode; the run's configuration; the step of the checkpoint;
    which weights they are (``ema`` or ``network``); SHA-256 of their file; shape (C, H, W) of the
    data and number of classes.
    """

    run_dir: Path
    config: Config = field(repr=False)
    network: nn.Module = field(repr=False)
    step: int
    weights: str
    digest: str
    shape: tuple[int, int, int]
    num_classes: int


def newest_checkpoint(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint and its manifest; a damaged one is reported and passed over.

    Raises:
        ValueError: there are checkpoints and none is intact.
    """
    folders = checkpoints_of(run_dir)
    for folder in reversed(folders):
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


def load_weights(
    network: nn.Module,
    path: Path,
    allow_missing: tuple[str, ...] = (),
    passed_over: tuple[str, ...] = (),
    blocks: tuple[int, ...] = (),
) -> None:
    """Load safetensors into ``network``, which may be sharded; names and shapes must agree.

    Parameters with a prefix of ``allow_missing`` may keep their initial value; those with one of
    ``passed_over`` keep it.  ``blocks`` are those of the file that are kept, in the order of the
    network's; none: all.
    """
    own = network.state_dict()
    _check_file(network, path, allow_missing, passed_over, blocks)
    with reading(path), safe_open(path, "pt") as file:
        for name in file.keys():
            kept = _name_of_kept(name, blocks)
            if kept is not None and not name.startswith(passed_over):
                load_shard(own[kept], file.get_tensor(name))


def _name_of_kept(name: str, blocks: tuple[int, ...]) -> str | None:
    """The name of a weight where only some ``blocks`` are kept; None: it is of another."""
    first, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    if not blocks or first != "blocks":
        return name
    return f"blocks.{blocks.index(int(number))}.{rest}" if int(number) in blocks else None


def _check_file(
    network: nn.Module,
    path: Path,
    allow_missing: tuple[str, ...] = (),
    passed_over: tuple[str, ...] = (),
    blocks: tuple[int, ...] = (),
) -> None:
    """Refuse names and shapes that differ, apart from what :func:`load_weights` is told."""
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    with reading(path), safe_open(path, "pt") as file:
        names = {name: kept for name in file.keys() if (kept := _name_of_kept(name, blocks))}
        theirs = {kept: tuple(file.get_slice(name).get_shape()) for name, kept in names.items()}
    own, theirs = (
        {k: v for k, v in side.items() if not k.startswith(passed_over)} for side in (own, theirs)
    )
    missing = [k for k in own.keys() - theirs.keys() if not k.startswith(allow_missing)]
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
        no_weights = ("log_variance", "alignment", "optimizer")
        files = [Path(n) for n in sorted(manifest["files"]) if not n.startswith(no_weights)]
        files += listed(run_dir / EMA_FOLDER, "std_*")
        there = ", ".join(p.stem for p in files if p.suffix == ".safetensors")
        raise ValueError(
            f"{run_dir} has no weights {weights!r}; there are {there}. `ucgm ema` makes averages "
            "of other lengths"
        )
    return path, read_snapshot(path).step, sha256(path)


def load_run(
    run_dir: str | Path, step: int | None = None, weights: str = "ema", device: str = "cpu"
) -> Run:
    """The network of a run folder, on ``device``.

    Args:
        run_dir: the folder, or its URL: ``hf://USER/NAME`` on the Hub, or any of fsspec.
        step: checkpoint; None: the newest intact one.
        weights: ``ema``, ``network`` for the raw weights, or an average of ``ucgm ema``.
        device: of the network.

    Raises:
        ValueError: no such folder, checkpoint or weights, with what there is.
    """
    run_dir = local_run(run_dir, step)
    config = read_config(run_dir / "config.yaml")
    if step is None:
        found = newest_checkpoint(run_dir)
        if found is None:
            raise ValueError(f"{run_dir} has no checkpoint yet")
        folder, manifest = found
    else:
        folder = run_dir / step_folder(step)
        if not folder.is_dir():
            there = [p.name for p in checkpoints_of(run_dir)]
            raise ValueError(f"{run_dir} has no checkpoint of step {step}; there are {there}")
        manifest = verify(folder)
    path, trained, digest = _find_weights(run_dir, folder, manifest, weights)
    if step not in (None, trained):
        raise ValueError(f"the weights {weights} are of step {trained}: leave the checkpoint out")
    where = f"{folder / MANIFEST}:"
    shape = checked(tuple[Side, Side, Side], manifest.get("shape"), f"{where} shape")
    classes = Annotated[int, Range(0, MOST_CLASSES)]
    num_classes = checked(classes, manifest.get("num_classes"), f"{where} num_classes")
    with torch.device("meta"):  # a network of other sizes is refused before it is there
        network = cast(nn.Module, config.model.build(shape, num_classes))
        _check_file(network, path)
    network = cast(nn.Module, config.model.build(shape, num_classes))
    load_weights(network, path)
    return Run(
        run_dir=run_dir,
        config=config,
        network=network.to(device).eval().requires_grad_(False),
        step=trained,
        weights=weights,
        digest=digest,
        shape=shape,
        num_classes=num_classes,
    )
