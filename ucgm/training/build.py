"""Everything a training step touches: built from a configuration, or restored from a run folder."""

import contextlib
import ctypes
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ucgm.data import Dataset, keep_card
from ucgm.data.loader import BatchPlan
from ucgm.objective import Alignment, LogVariance
from ucgm.runs import checkpoint
from ucgm.runs.config import Config, flat
from ucgm.runs.folder import create_run, start_from
from ucgm.runs.mirror import Mirror, meet_mirror
from ucgm.runs.saving import MANIFEST, StateDict, host_copies, optimizer_state, restore_optimizer
from ucgm.runtime.files import sole_writer
from ucgm.runtime.precision import float32_products, precision
from ucgm.runtime.processes import make_accelerator
from ucgm.runtime.reading import check_fields
from ucgm.runtime.sharding import Sharding
from ucgm.training.alignment import aligned
from ucgm.training.estimate import cost_of, duration, time_of_step
from ucgm.training.log import MetricsLogger
from ucgm.training.networks import Networks, make_networks
from ucgm.training.nonfinite import NonFiniteSkipper
from ucgm.training.optim import build_optimizer
from ucgm.training.sets import keep_encoders, open_sets
from ucgm.training.teachers import keep_facts, names_of_teachers, open_teachers
from ucgm.training.throughput import measure_peak
from ucgm.training.trackers import check_tracker, start_tracker


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
    trained: dict[nn.Parameter, str]
    optimizer: torch.optim.Optimizer
    skipper: NonFiniteSkipper
    log: MetricsLogger
    memory: str
    seconds: float
    wrapped_variance: LogVariance | None = None
    wrapped_alignment: Alignment | None = None
    mirror: Mirror | None = None
    step: int = 0

    @contextlib.contextmanager
    def exchanging(self, last: bool) -> Iterator[None]:
        """Processes exchange gradients in the ``last`` backward pass of a step only."""
        with contextlib.ExitStack() as stack:
            parts = (self.wrapped, self.wrapped_variance, self.wrapped_alignment)
            for module in filter(None, parts):
                if isinstance(module, FSDPModule):
                    module.set_requires_gradient_sync(last)
                elif not last:
                    stack.enter_context(self.accelerator.no_sync(module))
            yield

    def states(self) -> dict[str, StateDict]:
        """What a checkpoint holds, copied to the first process; sharded: all must call."""
        values = {name: module.state_dict() for name, module in self.networks.named().items()}
        values["optimizer"] = optimizer_state(self.optimizer, self.trained)
        main = self.accelerator.is_main_process
        return {name: host_copies(state, main) for name, state in values.items()}

    def describe(self) -> str:
        """What is about to happen: one line each for processes, network, data and the rest."""
        config, plan, network = self.config, self.plan, self.networks.online
        train = config.train
        count = sum(p.numel() for p in network.parameters())
        parts = [
            f"{plan.world} process{'es' * (plan.world > 1)}",
            *([f"{plan.accumulation} passes"] if plan.accumulation > 1 else []),
            f"{plan.micro_batch} rows",
        ]
        sharding = "" if train.sharding == "none" else f", weights spread by {train.sharding}"
        if sharding and plan.world == 1:
            sharding += ", without effect in one process"
        numbers = "bfloat16 autocast" if precision() == "bf16" else "float32"
        clip = f", gradients clipped to norm {train.grad_clip:g}" if train.grad_clip else ""
        lines = [
            f"run {self.run_dir}: step {self.step:,} of {train.steps:,}",
            f"batch {train.global_batch} ({' x '.join(parts)}) on {self.accelerator.device} in "
            f"{numbers}{sharding}",
            f"network {type(network).__name__.removeprefix('FSDP')} with {count:,} parameters, "
            f"objective {config.objective.preset}, path {config.objective.transport}",
            f"work per image: {self.log.work.describe()}; % of peak: of "
            f"{self.log.peak / 1e12:,.3g} TFLOP/s, which a large matrix product reached here",
            f"estimate: {self.memory}; {duration(self.seconds)} per step, "
            f"{duration(self.seconds * (train.steps - self.step))} to the end",
            self.dataset.describe(),
            *(f"teacher: {name}" for name in names_of_teachers(config)),
            *([self.networks.sets.describe()] if self.networks.sets else []),
            f"sampled weights: {config.ema.describe(target=config.objective.needs_target)}",
            f"optimizer: {config.optimizer.describe()}{clip}",
        ]
        return "\n  ".join(lines)


def build_train_state(config: Config, run_dir: Path, held: contextlib.ExitStack) -> TrainState:
    """Open the data, build or restore every part, and print what is about to happen.

    ``held`` gets the lock of the run, which it frees at the end of the training.
    """
    check_tracker(config.train.tracker)
    accelerator = make_accelerator(config.train.tracker, run_dir)
    keep_freed_memory(accelerator.device)
    # Beside bf16, what stays float32 is multiplied in TF32.
    held.enter_context(float32_products(tf32=precision() == "bf16"))
    dataset = _samples(config)
    train, rank, world = config.train, accelerator.process_index, accelerator.num_processes
    plan = BatchPlan(train.global_batch, train.accumulation, rank, world).check()
    mirror = meet_mirror(config, run_dir, accelerator)
    sharding = Sharding(world, accelerator.device, train.sharding == "fsdp2")
    work, memory = cost_of(config, dataset, plan, accelerator.device)
    network, teachers, facts = _begin(config, run_dir, dataset, sharding)
    sets = open_sets(config, dataset, plan, network, accelerator.device)
    alignment = aligned(config, network, dataset, plan, accelerator.device)
    # Every process has looked at the folder before one of them writes to it.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        held.enter_context(sole_writer(run_dir, "ucgm train"))
        create_run(config, run_dir, network)
        keep_facts(run_dir, facts)
        keep_encoders(config, run_dir, sets)
        keep_card(dataset, run_dir)
        if mirror is not None:
            mirror.push()
    accelerator.wait_for_everyone()
    networks = make_networks(config, network, sharding, teachers, alignment, sets)
    wrapped: list[Any] = [networks.online, networks.log_variance, alignment]
    if sharding.mesh is None and world > 1:
        wrapped = [module and accelerator.prepare(module) for module in wrapped]
    dtype = torch.bfloat16 if precision() == "bf16" else torch.float32
    peak = measure_peak(accelerator.device, dtype)
    state = TrainState(
        accelerator=accelerator,
        config=config,
        run_dir=run_dir,
        dataset=dataset,
        plan=plan,
        sharding=sharding,
        networks=networks,
        wrapped=wrapped[0],
        wrapped_variance=wrapped[1],
        wrapped_alignment=wrapped[2],
        mirror=mirror,
        trained=networks.trained(),
        optimizer=build_optimizer(config.optimizer, networks.trained()),
        skipper=NonFiniteSkipper(accelerator.device),
        log=MetricsLogger(run_dir / "metrics.jsonl", accelerator, train, work, peak),
        memory=memory,
        seconds=time_of_step(network, dataset.shape, plan, work, peak),
    )
    _resume(state)
    if train.tracker:
        start_tracker(accelerator, train.tracker, run_dir, state.step, flat(config))
    if accelerator.is_main_process:
        print(state.describe(), flush=True)
    return state


def _samples(config: Config) -> Dataset:
    """The data set, which must have samples."""
    dataset = config.data.open()
    if len(dataset) == 0:
        raise ValueError(
            f"{dataset.name} has no samples on this machine: set data to a set to train on, such "
            "as {class_path: Latents, init_args: {path: DIR}} of `ucgm encode`"
        )
    return dataset


def keep_freed_memory(device: torch.device) -> bool:
    """Let a training on a CPU keep what it frees for its next step; returns whether it does.

    A step frees its activations and asks for them again.  glibc hands large pieces back to the
    kernel, which clears every page anew: up to a tenth of a step (scripts/bench/training.py).  The
    process holds its largest step until it ends, which is what it needs anyway.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    max_mappings, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    return set_option is not None and bool(
        set_option(max_mappings, 0) and set_option(trim_threshold, -1)
    )


def _begin(
    config: Config, run_dir: Path, dataset: Dataset, sharding: Sharding
) -> tuple[nn.Module, list[nn.Module], list[dict[str, Any]]]:
    """The network as the run begins, its teachers and what they are: on the host, alike everywhere.

    Runs that are named may be going on, and have a new checkpoint by the time that another process
    looks.
    """
    torch.manual_seed(config.train.seed)
    network = config.model.build(dataset.shape, dataset.num_classes)
    check_inputs(config, network)
    start_from(config, run_dir, network, dataset)
    teachers, facts = open_teachers(config, run_dir, dataset)
    for module in (network, *teachers):
        sharding.copy_first(module)
    return network, teachers, facts


def check_inputs(config: Config, network: nn.Module) -> None:
    """Refuse an objective that this network, or its sharding, cannot serve."""
    objective = config.objective
    if objective.terminal and config.train.sharding != "none":
        raise ValueError(
            f"the preset {objective.preset} differentiates a forward derivative of the "
            "network, and gathered weights have no such gradient: set train.sharding: none"
        )
    settings = getattr(network, "config", {})
    if getattr(settings, "exit_layer", None) and not objective.exit_head:
        raise ValueError(
            f"the preset {objective.preset} would never train the network's exit head: set "
            "exit_layer: null in the model section, or objective.exit_head: 0.5"
        )
    if getattr(settings, "velocity_blocks", 0) and not objective.velocity_head:
        raise ValueError(
            f"the preset {objective.preset} would never train the network's velocity head: set "
            "objective.velocity_head: 1, or velocity_blocks: 0 in the model section of a DiT"
        )
    for name, value in objective.network_inputs.items():
        if not getattr(settings, name, None):
            raise ValueError(
                f"the preset {objective.preset} needs an input or output that this network does "
                f"not have: set {name}: {str(value).lower()} in the model section"
            )


def _resume(state: TrainState) -> None:
    """Restore the newest intact checkpoint, if there is one, and cut the log behind it.

    One process looks for it: all must continue from the same, and hashing takes long.
    """
    found = state.sharding.broadcast_from_rank0(lambda: checkpoint.newest_checkpoint(state.run_dir))
    if found is None:
        state.log.rewind(0)  # it may have been killed before its first checkpoint
        if sets := state.networks.sets:
            sets.begin(state.networks.online, state.accelerator.device)
        return
    folder, manifest = found
    before = manifest.get("precision", precision())
    if before != precision() and state.accelerator.is_main_process:
        warnings.warn(
            f"{state.run_dir} was trained in precision {before} and goes on in {precision()}, "
            "which is the launcher's --mixed_precision",
            stacklevel=2,
        )
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is on the machine of the first process and not on {socket.gethostname()}: "
            "put run_dir on a file system that all machines share, or set train.mirror"
        )
    if "optimizer.safetensors" not in manifest["files"]:
        raise ValueError(
            f"{folder} has weights but no state of an optimizer, so there is no training to "
            "continue: name it in train.init and choose another run_dir"
        )
    counts: dict[str, type] = {"ema_updates": int, "skipped": int, "skipped_in_a_row": int}
    check_fields(manifest, counts, f"{folder / MANIFEST}")
    for name, network in state.networks.named().items():
        checkpoint.load_weights(network, folder / f"{name}.safetensors")
    for average in state.networks.averages():
        average.updates = manifest["ema_updates"]
    restore_optimizer(state.optimizer, state.trained, folder / "optimizer.safetensors")
    state.step = manifest["step"]
    state.skipper.restore(manifest["skipped"], manifest["skipped_in_a_row"])
    state.log.rewind(state.step)
