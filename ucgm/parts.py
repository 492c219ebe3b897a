"""Everything a training step touches: built from a configuration, or restored from a run folder."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ucgm import checkpoint
from ucgm.config import Config, differences, read_config, write_config
from ucgm.data import Dataset, keep_card, open_for_sampling
from ucgm.data.loader import BatchPlan
from ucgm.ema import EMA, frozen_copy, stem_of
from ucgm.journal import Journal
from ucgm.launch import make_accelerator, precision
from ucgm.objective import LogVariance

# The weights a run started from; they are also its frozen teacher.
START = "teacher.safetensors"
# Settings that may differ when a run is continued: they do not change what is learned.
_FREE_TO_CHANGE = (
    "train.accumulation",
    "train.num_workers",
    "train.keep_checkpoints",
    "train.tracker",
    "data.path",
    "data.vae_path",
    "sampler.",
    "guidance.",
)


@dataclass
class Parts:
    """Everything a training step touches."""

    accelerator: Accelerator
    config: Config
    run_dir: Path
    dataset: Dataset
    plan: BatchPlan
    network: nn.Module
    wrapped: nn.Module
    optimizer: Any
    ema: EMA
    target: EMA | None
    tracked: dict[float, EMA]
    teacher: nn.Module | None
    log_variance: LogVariance | None
    journal: Journal
    step: int = 0
    skipped: int = 0

    @property
    def null_label(self) -> int | None:
        """The label of "no class"."""
        return self.dataset.num_classes or None

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        return self.step / self.config.train.steps

    def trained(self) -> list[nn.Parameter]:
        """Every parameter that the optimizer updates."""
        modules = [m for m in (self.network, self.log_variance) if m is not None]
        return [p for m in modules for p in m.parameters() if p.requires_grad]

    def averages(self) -> list[EMA]:
        """Every average of the weights."""
        return [a for a in (self.ema, self.target, *self.tracked.values()) if a is not None]

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by file stem."""
        named = {
            "network": self.network,
            "ema": self.ema.network,
            "target": self.target.network if self.target else None,
            "log_variance": self.log_variance,
        }
        named |= {f"ema_{stem_of(std)}": average.network for std, average in self.tracked.items()}
        return {name: module for name, module in named.items() if module is not None}


def build(config: Config, run_dir: Path) -> Parts:
    """Open the data, build or restore every part, and print what is about to happen."""
    accelerator = make_accelerator(config.train.tracker)
    dataset = config.data.open()
    if len(dataset) == 0:
        raise ValueError(
            f"{dataset.name} has no samples on this machine: set data to a set to train on, such "
            "as {class_path: Latents, init_args: {path: DIR}} of `ucgm encode`"
        )
    world = accelerator.num_processes
    plan = BatchPlan(
        config.train.global_batch, config.train.accumulation, accelerator.process_index, world
    ).check()
    _refuse_another(config, run_dir)
    torch.manual_seed(config.train.seed)
    network = config.model.build(dataset.shape, dataset.num_classes).to(accelerator.device)
    _check_inputs(config, network)
    _start_from(config, run_dir, network, dataset)
    # Every process has looked at the folder before one of them writes to it.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _claim(config, run_dir, network)
        keep_card(dataset, run_dir)
    accelerator.wait_for_everyone()
    teacher = frozen_copy(network) if config.objective.needs_teacher else None
    ema = EMA(network, config.ema.decay, config.ema.warmup, config.ema.std)
    target = None
    if config.objective.needs_target and config.ema.target_decay is not None:
        target = EMA(network, config.ema.target_decay, config.ema.warmup)
    tracked = {std: EMA(network, 0.0, std=std) for std in config.ema.tracked}
    log_variance = LogVariance().to(accelerator.device) if config.objective.log_variance else None
    heads = () if log_variance is None else log_variance.parameters()
    optimizer = config.optimizer.build([*network.parameters(), *heads])
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    if log_variance is not None and accelerator.num_processes > 1:
        log_variance = accelerator.prepare(log_variance)
    journal = Journal(
        run_dir / "metrics.jsonl", accelerator, config.train.steps, config.train.global_batch
    )
    parts = Parts(
        accelerator=accelerator,
        config=config,
        run_dir=run_dir,
        dataset=dataset,
        plan=plan,
        network=network,
        wrapped=wrapped,
        optimizer=optimizer,
        ema=ema,
        target=target,
        tracked=tracked,
        teacher=teacher,
        log_variance=log_variance,
        journal=journal,
    )
    _resume(parts)
    if config.train.tracker:
        accelerator.init_trackers(run_dir.name)
    if accelerator.is_main_process:
        _banner(parts)
    return parts


def _check_inputs(config: Config, network: nn.Module) -> None:
    """Refuse an objective whose network inputs this network does not have."""
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


def _refuse_another(config: Config, run_dir: Path) -> None:
    """Refuse the run folder of another configuration, and a folder that is none."""
    path = run_dir / "config.yaml"
    if path.exists():
        changed = differences(read_config(path), config)
        found = [d for d in changed if not d.startswith(_FREE_TO_CHANGE)]
        if found:
            raise ValueError(
                f"{run_dir} belongs to another configuration ({'; '.join(found[:3])}"
                f"{'; ...' if len(found) > 3 else ''}): choose another run_dir"
            )
    elif run_dir.exists() and any(run_dir.iterdir()):
        raise ValueError(f"{run_dir} is not empty and not a run folder: choose another run_dir")


def _claim(config: Config, run_dir: Path, network: nn.Module) -> None:
    """Make ``run_dir`` this configuration's folder, with the weights it starts from."""
    (run_dir / "samples").mkdir(parents=True, exist_ok=True)
    temporary = run_dir / "config.yaml.tmp"
    write_config(config, temporary)
    os.replace(temporary, run_dir / "config.yaml")
    kept = run_dir / START
    if config.train.init is not None and not kept.exists():
        temporary = kept.with_suffix(".tmp")
        checkpoint.save_weights(network, temporary)
        os.replace(temporary, kept)


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


def _start_from(config: Config, run_dir: Path, network: nn.Module, dataset: Dataset) -> None:
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
    source = checkpoint.newest_checkpoint(Path(config.train.init))
    assert source is not None
    checkpoint.load_weights(network, source[0] / "ema.safetensors", checkpoint.OPTIONAL_INPUTS)


def _resume(parts: Parts) -> None:
    """Restore the newest intact checkpoint, if there is one, and cut the log behind it."""
    found = checkpoint.newest_checkpoint(parts.run_dir)
    if found is None:
        return
    folder, manifest = found
    for name, network in parts.networks().items():
        checkpoint.load_weights(network, folder / f"{name}.safetensors")
    for average in parts.averages():
        average.updates = manifest["ema_updates"]
    state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    parts.optimizer.load_state_dict(state)
    parts.step, parts.skipped = manifest["step"], manifest["skipped"]
    parts.journal.rewind(parts.step)


def _banner(parts: Parts) -> None:
    config, world = parts.config, parts.accelerator.num_processes
    count = sum(p.numel() for p in parts.network.parameters())
    print(
        f"run {parts.run_dir}: step {parts.step} of {config.train.steps}\n"
        f"  world size {world} ({parts.accelerator.device}, precision {precision()}), global batch "
        f"{config.train.global_batch} = {world} x {config.train.accumulation} x "
        f"{parts.plan.micro_batch}\n"
        f"  {type(parts.network).__name__} with {count:,} parameters, "
        f"objective {config.objective.preset}, transport {config.objective.transport}\n"
        f"  {parts.dataset.describe()}",
        flush=True,
    )
