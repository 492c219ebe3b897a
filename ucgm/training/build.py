"""Everything a training step touches: built from a configuration, or restored from a run folder."""

import contextlib
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from ucgm.data import Dataset, keep_card
from ucgm.data.loader import BatchPlan
from ucgm.objective import LogVariance
from ucgm.runs import checkpoint
from ucgm.runs.config import Config, flat
from ucgm.runs.folder import create_run, lock_run, refuse_another
from ucgm.runs.saving import State, host_copies, optimizer_state, restore_optimizer
from ucgm.runs.settings import stem_of
from ucgm.runtime.precision import precision
from ucgm.runtime.processes import make_accelerator
from ucgm.runtime.sharding import Sharding, exchange_gradients
from ucgm.training.banner import banner
from ucgm.training.ema import EMA, frozen_copy
from ucgm.training.host import compile_blocks, keep_freed_memory
from ucgm.training.log import MetricsLogger, Pace
from ucgm.training.nonfinite import NonFiniteSkipper
from ucgm.training.optim import build_optimizer
from ucgm.training.start import check_inputs, start_from
from ucgm.training.throughput import count_work, measure_peak
from ucgm.training.trackers import check_tracker, start_tracker


@dataclass
class Networks:
    """The networks of a training, each where it belongs: whole, or this process's part.

    Attributes:
        online: the one that is trained.
        ema: the average that is sampled.
        target: the average that the objective learns from, where it is another.
        tracked: power-function averages by their relative length.
        teacher: frozen, where the objective has one.
        log_variance: the learned variance of t, where the objective has one.
    """

    online: nn.Module
    ema: EMA
    target: EMA | None
    tracked: dict[float, EMA]
    teacher: nn.Module | None
    log_variance: LogVariance | None

    def named(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by file stem."""
        named = {
            "network": self.online,
            "ema": self.ema.network,
            "target": self.target.network if self.target else None,
            "log_variance": self.log_variance,
        }
        named |= {f"ema_{stem_of(std)}": average.network for std, average in self.tracked.items()}
        return {name: module for name, module in named.items() if module is not None}

    def averages(self) -> list[EMA]:
        """Every average of the weights."""
        return [a for a in (self.ema, self.target, *self.tracked.values()) if a is not None]

    def trained(self) -> dict[nn.Parameter, str]:
        """Every parameter that the optimizer updates, with its name."""
        found = {p: name for name, p in self.online.named_parameters()}
        if self.log_variance is not None:
            heads = self.log_variance.named_parameters(prefix="log_variance")
            found |= {p: name for name, p in heads}
        return {p: name for p, name in found.items() if p.requires_grad}


@dataclass
class TrainState:
    """Everything a training step touches."""

    accelerator: Accelerator
    config: Config
    run_dir: Path
    dataset: Dataset
    plan: BatchPlan
    sharding: Sharding
    networks: Networks
    wrapped: nn.Module
    wrapped_variance: LogVariance | None
    optimizer: torch.optim.Optimizer
    guard: NonFiniteSkipper
    journal: MetricsLogger
    step: int = 0
    trained: dict[nn.Parameter, str] = field(init=False)

    def __post_init__(self) -> None:
        """List the parameters once."""
        self.trained = self.networks.trained()

    @property
    def null_label(self) -> int | None:
        """The label of "no class"."""
        return self.dataset.num_classes or None

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        return self.step / self.config.train.steps

    @contextlib.contextmanager
    def exchanging(self, last: bool) -> Iterator[None]:
        """Processes exchange gradients in the ``last`` backward pass of a step only."""
        modules = [m for m in (self.wrapped, self.wrapped_variance) if m is not None]
        with contextlib.ExitStack() as stack:
            for module in modules:
                if self.sharding.mesh is not None:
                    exchange_gradients(module, last)
                elif not last:
                    stack.enter_context(self.accelerator.no_sync(module))
            yield

    def states(self) -> dict[str, State]:
        """What a checkpoint holds, copied to the first process; sharded: all must call."""
        values = {name: module.state_dict() for name, module in self.networks.named().items()}
        values["optimizer"] = optimizer_state(self.optimizer, self.trained)
        if self.sharding.mesh is None and not self.accelerator.is_main_process:
            return {}
        main = self.accelerator.is_main_process
        return {name: host_copies(state, main) for name, state in values.items()}


def build_train_state(config: Config, run_dir: Path, held: contextlib.ExitStack) -> TrainState:
    """Open the data, build or restore every part, and print what is about to happen.

    ``held`` is given what has to be let go at the end of the training.
    """
    check_tracker(config.train.tracker)
    accelerator = make_accelerator(config.train.tracker, run_dir)
    keep_freed_memory(accelerator.device)
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
    refuse_another(config, run_dir)
    sharding = Sharding(world, accelerator.device, config.train.sharding == "fsdp2")
    network = _begin(config, run_dir, dataset, sharding)
    # Every process has looked at the folder before one of them writes to it.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        held.enter_context(lock_run(run_dir))
        create_run(config, run_dir, network)
        keep_card(dataset, run_dir)
    accelerator.wait_for_everyone()
    networks = _place(config, network, sharding)
    optimizer = build_optimizer(config.optimizer, networks.trained())
    wrapped, wrapped_variance = networks.online, networks.log_variance
    if sharding.mesh is None and world > 1:
        wrapped = accelerator.prepare(wrapped)
        wrapped_variance = wrapped_variance and accelerator.prepare(wrapped_variance)
    work = count_work(config.model, dataset.shape, dataset.num_classes, config.objective)
    half = precision() == "bf16"
    peak = measure_peak(accelerator.device, torch.bfloat16 if half else torch.float32)
    pace = Pace(config.train.steps, config.train.global_batch, work.flops, peak)
    parts = TrainState(
        accelerator=accelerator,
        config=config,
        run_dir=run_dir,
        dataset=dataset,
        plan=plan,
        sharding=sharding,
        networks=networks,
        wrapped=wrapped,
        wrapped_variance=wrapped_variance,
        optimizer=optimizer,
        guard=NonFiniteSkipper(accelerator.device),
        journal=MetricsLogger(run_dir / "metrics.jsonl", accelerator, pace),
    )
    _resume(parts)
    if config.train.tracker:
        start_tracker(accelerator, config.train.tracker, run_dir, parts.step, flat(config))
    if accelerator.is_main_process:
        facts = (plan, network, dataset, accelerator.device, work, peak)
        print(banner(config, run_dir, parts.step, *facts), flush=True)
    return parts


def _begin(config: Config, run_dir: Path, dataset: Dataset, sharding: Sharding) -> nn.Module:
    """The network as the run begins, on the host, alike on every process."""
    torch.manual_seed(config.train.seed)
    network = config.model.build(dataset.shape, dataset.num_classes)
    check_inputs(config, network)
    start_from(config, run_dir, network, dataset)
    # The run that it starts from may be going on, and have a new checkpoint by now.
    sharding.copy_first(network)
    return network


def _place(config: Config, network: nn.Module, sharding: Sharding) -> Networks:
    """Copies of the new network for all its roles, each moved or sharded before the next is made.

    The trained one goes last, because a sharded network cannot be copied.
    """
    settings = config.ema
    ema = EMA(network, settings.decay, settings.warmup, settings.std, sharding.place)
    target = None
    if config.objective.needs_target and settings.target_decay is not None:
        target = EMA(network, settings.target_decay, settings.warmup, place=sharding.place)
    tracked = {std: EMA(network, 0.0, std=std, place=sharding.place) for std in settings.tracked}
    teacher = log_variance = None
    if config.objective.needs_teacher:
        teacher = sharding.place(frozen_copy(network))
    if config.objective.log_variance:
        log_variance = LogVariance()
        sharding.place(log_variance)
    sharding.place(network)
    networks = Networks(network, ema, target, tracked, teacher, log_variance)
    if config.train.compile:
        for module in (network, teacher, *(average.network for average in networks.averages())):
            if module is not None:
                compile_blocks(module)
    return networks


def _resume(parts: TrainState) -> None:
    """Restore the newest intact checkpoint, if there is one, and cut the log behind it.

    One process looks for it: all must continue from the same, and hashing takes long.
    """
    found = parts.sharding.broadcast_from_rank0(lambda: checkpoint.newest_checkpoint(parts.run_dir))
    if found is None:
        return
    folder, manifest = found
    before = manifest.get("precision", precision())
    if before != precision() and parts.accelerator.is_main_process:
        warnings.warn(
            f"{parts.run_dir} was trained in precision {before} and goes on in {precision()}, "
            "which is the launcher's --mixed_precision",
            stacklevel=2,
        )
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is on the machine of the first process and not on {socket.gethostname()}: "
            "put run_dir on a file system that all machines share"
        )
    if "optimizer.safetensors" not in manifest["files"]:
        raise ValueError(
            f"{folder} has weights but no state of an optimizer, so there is no training to "
            "continue: name it in train.init and choose another run_dir"
        )
    for name, network in parts.networks.named().items():
        checkpoint.load_weights(network, folder / f"{name}.safetensors")
    for average in parts.networks.averages():
        average.updates = manifest["ema_updates"]
    restore_optimizer(parts.optimizer, parts.trained, folder / "optimizer.safetensors")
    parts.step = manifest["step"]
    parts.guard.restore(manifest["skipped"], manifest["skipped_in_a_row"])
    parts.journal.rewind(parts.step)
