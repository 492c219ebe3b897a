"""What a training starts from, and whose folder it is: the checks before anything is built.

A run folder belongs to one configuration and to the weights it started from, which stay in it;
and to one training at a time, whose first process holds a lock on ``RUN/.lock`` while it lives.
"""

from pathlib import Path

from torch import nn

from ucgm.data import Dataset, open_for_sampling
from ucgm.runs import checkpoint
from ucgm.runs.config import Config
from ucgm.runs.folder import START


def check_inputs(config: Config, network: nn.Module) -> None:
    """Refuse an objective that this network, or its sharding, cannot serve."""
    if config.objective.terminal and config.train.sharding != "none":
        raise ValueError(
            f"the preset {config.objective.preset} differentiates a forward derivative of the "
            "network, and gathered weights have no such gradient: set train.sharding: none"
        )
    if config.objective.alignment:
        raise ValueError(
            "objective.alignment needs an encoder's features of every batch, which this command "
            "does not make: give them to ucgm.objective.Alignment in Python, or set it to 0"
        )
    settings = getattr(network, "config", {})
    for input_name, needed in (
        ("second_time", config.objective.two_time),
        ("guidance_input", config.objective.guidance_range is not None),
    ):
        if needed and not getattr(settings, input_name, False):
            raise ValueError(
                f"the preset {config.objective.preset} gives the network an input that it does "
                f"not have: set {input_name}: true in the model section"
            )


def _check_start(config: Config, run: checkpoint.Run, network: nn.Module, dataset: Dataset) -> None:
    """Refuse weights that load and mean something else: path, classes, network, latents."""
    where = config.train.init
    if run.config.objective.transport != config.objective.transport:
        raise ValueError(
            f"{where} was trained on {run.config.objective.transport} and this objective uses "
            f"{config.objective.transport}: set objective.transport to its path"
        )
    if run.num_classes != dataset.num_classes:
        raise ValueError(
            f"{where} has {run.num_classes} classes and these data have {dataset.num_classes}: the "
            "teacher must know the classes it teaches"
        )
    theirs, mine = (dict(getattr(n, "config", {})) for n in (run.network, network))
    for name in (theirs.keys() & mine.keys()) - {"second_time", "guidance_input"}:
        if not name.startswith("_") and theirs[name] != mine[name]:
            raise ValueError(
                f"{where} does not fit the network of this configuration: it has {name} = "
                f"{theirs[name]}, this {name} = {mine[name]}. Use the model section of "
                f"{where}/config.yaml"
            )
    try:
        codec = open_for_sampling(run.config.data, run.run_dir).codec
    except ValueError:  # its data are not on this machine, and it kept no card of them
        return
    if codec is not None and dataset.codec is not None:
        codec.check_scaling(dataset.codec, f"the run {where}", f"the data set {dataset.name}")


def start_from(config: Config, run_dir: Path, network: nn.Module, dataset: Dataset) -> None:
    """Load the weights that ``train.init`` names; a run that has begun keeps its own copy."""
    if config.train.init is None:
        if config.objective.needs_teacher:
            raise ValueError(
                f"the preset {config.objective.preset} learns from a trained model: set train.init "
                "to the run folder of a multi-step model"
            )
        return
    if (run_dir / START).exists():
        checkpoint.load_weights(network, run_dir / START)
        return
    run = checkpoint.load_run(config.train.init)
    _check_start(config, run, network, dataset)
    folder = Path(config.train.init) / checkpoint.CHECKPOINTS / f"step_{run.step:07d}"
    checkpoint.load_weights(network, folder / "ema.safetensors", checkpoint.OPTIONAL_INPUTS)
