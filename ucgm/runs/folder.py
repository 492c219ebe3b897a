"""A run folder at the start of a training: whose it is, its lock, and the weights it starts from.

A run folder belongs to one configuration, whose free settings may change when it is continued, and
to the weights it started from, which stay in it; and to one training at a time.
"""

from pathlib import Path
from typing import Any

from torch import nn

from ucgm.data import Dataset, DataSpec, open_for_sampling
from ucgm.data.dataset import other_classes
from ucgm.data.sets.declared import CARD_FILE
from ucgm.nn.network import ADDED
from ucgm.objective import POST_TRAINING
from ucgm.runs import checkpoint
from ucgm.runs.config import Config, differences, read_config, write_config
from ucgm.runs.saving import save_weights, step_folder
from ucgm.runtime.files import holds_files, remove, write_atomic
from ucgm.runtime.reading import read_json

# The weights a run started from; they are also its frozen teacher.
START = "teacher.safetensors"
# The encoders whose features a run was trained on.
ENCODERS = "encoders.json"

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
    "train.mirror",
    "train.num_workers",
    "train.preview_every",
    "train.sharding",
    "train.teacher",  # it may have moved; its weights may not have changed
    "train.tracker",
    "data.path",
    "data.vae_path",
    "sampler.",
    "guidance.",
)


def encoders_of(run_dir: Path) -> list[dict[str, str]]:
    """Name and weights hash of every encoder that a run, or one it comes from, was trained on."""
    path = run_dir / ENCODERS
    if not path.exists():
        return []
    return read_json(path, {"encoders": [{"name": str, "sha256": str}]})["encoders"]


def refuse_another(config: Config, run_dir: str | Path, old: Config | None = None) -> None:
    """Refuse the run of another configuration, and a folder that is none; ``old`` is the run's."""
    path = Path(run_dir) / "config.yaml"
    if old is not None or path.exists():
        old = read_config(path) if old is None else old
        found = [d for d in differences(old, config) if not d.startswith(_FREE_TO_CHANGE)]
        moving = _follows_the_length(old) or _follows_the_length(config)
        lengths = [d for d in found if d.startswith("train.steps")]
        if lengths and moving and len(found) == 1:
            raise ValueError(
                f"{run_dir} cannot be made longer or shorter ({lengths[0]}): {moving} follows the "
                f"number of steps. Train on from it with --train.init {run_dir} and a new --run-dir"
                ", or, to begin anew, remove the folder or name another --run-dir"
            )
        if not moving:
            found = [d for d in found if d not in lengths]
        if found:
            raise ValueError(
                f"{run_dir} belongs to another configuration ({'; '.join(found[:3])}"
                f"{'; ...' if len(found) > 3 else ''}): choose another run_dir"
            )
    elif holds_files(path.parent):
        raise ValueError(f"{run_dir} is not empty and not a run folder: choose another run_dir")


def _follows_the_length(config: Config) -> str:
    """What depends on how many steps there will be; without that a run may be made longer."""
    if config.optimizer.schedule == "cosine":
        return "the learning rate (optimizer.schedule cosine)"
    if config.objective.anchor_schedule != "constant":
        return f"the objective (anchor_schedule {config.objective.anchor_schedule})"
    return "the objective (tangent_warmup)" if config.objective.tangent_warmup > 0 else ""


def start_from(config: Config, run_dir: Path, network: nn.Module, dataset: Dataset) -> None:
    """Load the weights that ``train.init`` names; a run that has begun keeps its own copy."""
    train = config.train
    if train.init is None:
        if train.keep_blocks:
            raise ValueError(
                "train.keep_blocks is about the blocks of train.init: name a run there"
            )
        if config.objective.preset in POST_TRAINING:
            raise ValueError(
                f"the preset {config.objective.preset} goes on from a trained model: set "
                "train.init to its run folder"
            )
        if config.objective.needs_teacher and not train.teacher:
            raise ValueError(
                f"the preset {config.objective.preset} learns from a trained model: set train.init "
                "to the run folder of a multi-step model, or train.teacher to those of several"
            )
        return
    if (run_dir / START).exists():
        checkpoint.load_weights(network, run_dir / START)
        return
    run = checkpoint.load_run(train.init)
    _check_start(config, run, network, dataset)
    folder = run.run_dir / step_folder(run.step)
    anew = checkpoint.LABEL_TABLES if train.new_labels else ()
    theirs, mine = (getattr(n, "config", {}).get("exit_layer") for n in (run.network, network))
    anew = anew if theirs == mine else (*anew, "exit_head.")  # of other blocks
    checkpoint.load_weights(network, folder / "ema.safetensors", ADDED, anew, train.keep_blocks)


def _check_start(config: Config, run: checkpoint.Run, network: nn.Module, dataset: Dataset) -> None:
    """Refuse weights that load and mean something else: path, classes, network, latents."""
    where = config.train.init
    if run.config.objective.transport != config.objective.transport:
        raise ValueError(
            f"{where} was trained on {run.config.objective.transport} and this objective uses "
            f"{config.objective.transport}: set objective.transport to its path"
        )
    check_data(config, run, dataset)
    theirs, mine = (dict(getattr(n, "config", {})) for n in (run.network, network))
    parts = ("second_time", "guidance_input", "guidance_interval", "velocity_blocks",
             "decoupled_depth")  # fmt: skip
    free = {name for name in parts if not theirs.get(name)}  # it may be added, not taken away
    free |= {"exit_layer", *["num_classes"] * config.train.new_labels}
    if config.train.keep_blocks:
        _check_blocks(config, theirs, mine)
        free |= {"depth"}
    for name in (theirs.keys() & mine.keys()) - free:
        if not name.startswith("_") and theirs[name] != mine[name]:
            raise ValueError(
                f"{where} does not fit the network of this configuration: it has {name} = "
                f"{theirs[name]}, this {name} = {mine[name]}. Use the model section of "
                f"{where}/config.yaml"
            )


def check_data(config: Config, run: checkpoint.Run, dataset: Dataset) -> None:
    """Refuse a run to start from, or to learn from, whose data are of another kind.

    Raises:
        ValueError: other classes, another shape, or other latents.
    """
    where = run.run_dir
    try:
        data = open_for_sampling(run.config.data, where)
    except ValueError:  # its data are not on this machine, and it kept no card of them
        data = DataSpec(run.shape, run.num_classes, str(where)).open()
    _check_classes(config, where, data, dataset)
    if data.shape != dataset.shape:
        raise ValueError(
            f"the run {where} was trained on data of shape {data.shape}, and {dataset.name} has "
            f"{dataset.shape}"
        )
    if data.codec is not None and dataset.codec is not None:
        data.codec.check_scaling(dataset.codec, f"the run {where}", f"the data set {dataset.name}")


def _check_blocks(config: Config, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Refuse blocks that the network to start from does not have, or not the new one."""
    where, kept = config.train.init, config.train.keep_blocks
    depth = theirs.get("depth")
    if not isinstance(depth, int) or "encoder_depth" in theirs:
        raise ValueError(f"train.keep_blocks is for a DiT, and the network of {where} is none")
    if max(kept) >= depth or len(set(kept)) < len(kept):
        raise ValueError(
            f"train.keep_blocks {list(kept)} must be different blocks of 0 to {depth - 1}, which "
            f"{where} has"
        )
    if mine["depth"] != len(kept):
        raise ValueError(
            f"train.keep_blocks names {len(kept)} blocks and model.depth is {mine['depth']}: leave "
            "model.depth out"
        )


def _check_classes(config: Config, where: Path, theirs: Dataset, mine: Dataset) -> None:
    """Refuse other classes, unless their table is drawn anew, which no teacher can do without."""
    other = other_classes(theirs, mine)
    if config.train.new_labels and config.objective.needs_teacher:
        raise ValueError(
            f"train.new_labels: the preset {config.objective.preset} learns from {where}, which "
            "must know the classes it teaches"
        )
    if other and not config.train.new_labels:
        remedy = (
            "the teacher must know the classes it teaches"
            if config.objective.needs_teacher
            else "set train.new_labels to true to draw their table anew"
        )
        raise ValueError(
            f"the run {where} was trained on other classes: {other}. Choose data of its classes "
            f"({CARD_FILE} of the run names them), or {remedy}"
        )


def create_run(config: Config, run_dir: Path, network: nn.Module) -> None:
    """Make ``run_dir`` this configuration's folder, with the weights it starts from."""
    for left in (*run_dir.glob(".*.tmp"), *run_dir.glob("*/.step_*.tmp")):  # by a crash
        remove(left)
    run_dir.mkdir(exist_ok=True)
    write_atomic(run_dir / "config.yaml", lambda path: write_config(config, path))
    (run_dir / "samples").mkdir(exist_ok=True)
    kept = run_dir / START
    if config.train.init is not None and not kept.exists():
        write_atomic(kept, lambda path: save_weights(network, path))
