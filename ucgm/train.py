"""Training: build everything, then the loop on one screen.

The step is: batch, draw, terms, backward, clip, step, EMA.  Everything random in it is a function
of (seed, step, row), so a run is the same on any number of processes, and resuming is exact.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ucgm import checkpoint
from ucgm.config import Config, differences, read_config, write_config
from ucgm.data import Dataset
from ucgm.data.loader import BatchPlan, batches
from ucgm.ema import EMA, frozen_copy
from ucgm.generate import SampleSet, save_preview
from ucgm.journal import Journal
from ucgm.launch import autocast, make_accelerator, precision
from ucgm.randomness import RowRandom

# Settings that may differ when a run is continued: they do not change what is learned.
_FREE_TO_CHANGE = (
    "train.num_workers",
    "train.keep_checkpoints",
    "train.tracker",
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
    teacher: nn.Module | None
    journal: Journal
    step: int = 0
    skipped: int = 0

    @property
    def null_label(self) -> int | None:
        """The label of "no class"."""
        return self.dataset.num_classes or None


def train(config: Config, run_dir: str | Path) -> Path:
    """Train, or continue the training in ``run_dir``; returns the run folder.

    Raises:
        ValueError: a run folder of another configuration, or settings that do not fit together.
        RuntimeError: too many steps in a row without a finite gradient.
    """
    parts = build(config, Path(run_dir))
    accelerator, objective = parts.accelerator, config.objective
    stream = batches(
        parts.dataset, parts.plan, config.train.seed, parts.step, config.train.num_workers
    )
    stopped = _listen_for_signals()
    skipped_in_a_row = 0
    while parts.step < config.train.steps:
        torch.manual_seed(_dropout_seed(parts))
        for group in parts.optimizer.param_groups:
            group["lr"] = config.optimizer.lr_at(parts.step, config.train.steps)
        for micro in range(config.train.accumulation):
            x, y = (v.to(accelerator.device, non_blocking=True) for v in next(stream))
            labels = y if parts.null_label is not None else None
            keys = RowRandom.for_rows(config.train.seed, parts.step, parts.plan.rows(micro))
            draw = objective.draw(x, labels, parts.null_label, keys)
            last = micro == config.train.accumulation - 1
            sync = contextlib.nullcontext() if last else accelerator.no_sync(parts.wrapped)
            with sync:
                with autocast(accelerator.device):
                    terms = objective.terms(
                        parts.wrapped,
                        draw,
                        target=(parts.target or parts.ema).network,
                        teacher=parts.teacher,
                    )
                accelerator.backward(terms.loss / config.train.accumulation)
            parts.journal.add(loss=terms.loss.detach() / config.train.accumulation)
        limit = config.train.grad_clip
        norm = nn.utils.clip_grad_norm_(parts.network.parameters(), limit or float("inf"))
        if bool(torch.isfinite(norm)):
            parts.optimizer.step()
            parts.ema.update()
            if parts.target is not None:
                parts.target.update()
            skipped_in_a_row = 0
        else:
            parts.skipped += 1
            skipped_in_a_row += 1
        parts.optimizer.zero_grad(set_to_none=True)
        parts.step += 1
        parts.journal.add(grad_norm=norm.detach())
        parts.journal.count_step()
        stop = stopped()
        _report(parts, skipped_in_a_row, stop)
        if stop:
            break
    accelerator.end_training()
    return parts.run_dir


def build(config: Config, run_dir: Path) -> Parts:
    """Open the data, build or restore every part, and print what is about to happen."""
    accelerator = make_accelerator(config.train.tracker)
    dataset = config.data.open()
    world = accelerator.num_processes
    plan = BatchPlan(
        config.train.global_batch, config.train.accumulation, accelerator.process_index, world
    ).check()
    _claim(config, run_dir, accelerator)

    torch.manual_seed(config.train.seed)
    network = config.model.build(dataset.shape, dataset.num_classes).to(accelerator.device)
    teacher = _initialise(config, run_dir, network, accelerator)
    if config.objective.needs_teacher and teacher is None:
        raise ValueError(
            f"the preset {config.objective.preset} learns from a trained model: set train.init to "
            "the run folder of a multi-step model"
        )
    ema = EMA(network, config.ema.decay, config.ema.warmup)
    target = None
    if config.objective.needs_target and config.ema.target_decay is not None:
        target = EMA(network, config.ema.target_decay, config.ema.warmup)
    optimizer = config.optimizer.build(network.parameters())
    wrapped, optimizer = accelerator.prepare(network, optimizer)
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
        teacher=teacher,
        journal=journal,
    )
    _resume(parts)
    if config.train.tracker:
        accelerator.init_trackers(run_dir.name)
    if accelerator.is_main_process:
        _banner(parts)
    return parts


def _claim(config: Config, run_dir: Path, accelerator: Accelerator) -> None:
    """Make ``run_dir`` this configuration's folder, or refuse the folder of another one."""
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
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (run_dir / "samples").mkdir(parents=True, exist_ok=True)
        temporary = run_dir / "config.yaml.tmp"
        write_config(config, temporary)
        os.replace(temporary, path)
    accelerator.wait_for_everyone()


def _initialise(
    config: Config, run_dir: Path, network: nn.Module, accelerator: Accelerator
) -> nn.Module | None:
    """Load ``train.init`` into the network; the frozen teacher, kept in the run folder."""
    if config.train.init is None:
        return None
    kept = run_dir / "teacher.safetensors"
    if not kept.exists():
        run = checkpoint.load_run(config.train.init)
        if run.config.objective.transport != config.objective.transport:
            raise ValueError(
                f"{config.train.init} was trained on {run.config.objective.transport} and this "
                f"objective uses {config.objective.transport}: set objective.transport to its path"
            )
        source = checkpoint.newest_checkpoint(Path(config.train.init))
        assert source is not None
        checkpoint.load_weights(network, source[0] / "ema.safetensors", ("s_embedder.",))
        if accelerator.is_main_process:
            temporary = kept.with_suffix(".tmp")
            checkpoint.save_weights(network, temporary)
            os.replace(temporary, kept)
        accelerator.wait_for_everyone()
    else:
        checkpoint.load_weights(network, kept)
    return frozen_copy(network) if config.objective.needs_teacher else None


def _resume(parts: Parts) -> None:
    """Restore the newest intact checkpoint, if there is one, and cut the log behind it."""
    found = checkpoint.newest_checkpoint(parts.run_dir)
    if found is None:
        return
    folder, manifest = found
    checkpoint.load_weights(parts.network, folder / "network.safetensors")
    for name, average in (("ema", parts.ema), ("target", parts.target)):
        if average is not None:
            checkpoint.load_weights(average.network, folder / f"{name}.safetensors")
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


def _dropout_seed(parts: Parts) -> int:
    """Seed of the dropout masks of this step on this rank."""
    keys = RowRandom.for_rows(parts.config.train.seed, parts.step, torch.tensor([parts.plan.rank]))
    return int(keys.keys[0]) % 2**32


def _listen_for_signals() -> Callable[[], bool]:
    """A function that tells whether SIGTERM or SIGINT has arrived."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda which, _: received.append(which))
    return lambda: bool(received)


def _report(parts: Parts, skipped_in_a_row: int, stop: bool) -> None:
    """Log, preview and save, each in its period; stop a run that has diverged."""
    train, step, main = parts.config.train, parts.step, parts.accelerator.is_main_process
    last = step == train.steps or stop
    if step % train.log_every == 0 or last:
        parts.journal.write(step, parts.optimizer.param_groups[0]["lr"], parts.skipped)
    if skipped_in_a_row >= train.max_skipped:
        raise RuntimeError(
            f"{skipped_in_a_row} steps in a row had a non-finite gradient (step {step}); lower "
            "optimizer.lr or set train.grad_clip. The last checkpoint is untouched."
        )
    if main and (step % train.preview_every == 0 or last):
        device = parts.accelerator.device
        samples = SampleSet(parts.ema.network, parts.config.sampler, parts.dataset, device=device)
        save_preview(samples, parts.run_dir / "samples" / f"step_{step:07d}.png")
    if main and (step % train.checkpoint_every == 0 or last):
        networks: dict[str, nn.Module] = {"network": parts.network, "ema": parts.ema.network}
        if parts.target is not None:
            networks["target"] = parts.target.network
        facts = {
            "shape": parts.dataset.shape,
            "num_classes": parts.dataset.num_classes,
            "ema_updates": parts.ema.updates,
            "skipped": parts.skipped,
        }
        state = parts.optimizer.state_dict()
        checkpoint.save_checkpoint(
            parts.run_dir, step, networks, state, facts, train.keep_checkpoints
        )
