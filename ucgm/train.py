"""Training: the loop on one screen.

The step is: batch, draw, terms, backward, clip, step, EMA.  Everything random in it is a function
of (seed, step, row), so a run is the same on any number of processes, and resuming is exact.
"""

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ucgm import checkpoint
from ucgm.config import Config
from ucgm.data.loader import batches
from ucgm.generate import SampleSet, save_preview
from ucgm.launch import autocast
from ucgm.parts import Parts, build
from ucgm.posthoc import save_snapshot
from ucgm.randomness import RowRandom

# Steps between the questions of several processes whether one of them was told to stop.
STOP_EVERY = 10


def train(config: Config, run_dir: str | Path) -> Path:
    """Train, or continue the training in ``run_dir``; returns the run folder.

    Raises:
        ValueError: a run folder of another configuration, or settings that do not fit together.
        RuntimeError: too many steps in a row without a finite gradient.
    """
    parts = build(config, Path(run_dir))
    accelerator, objective = parts.accelerator, config.objective
    stream = batches(
        parts.dataset,
        parts.plan,
        config.train.seed,
        parts.step,
        config.train.num_workers,
        accelerator.device,
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
            draw = objective.draw(x, labels, parts.null_label, keys, parts.progress)
            last = micro == config.train.accumulation - 1
            sync = contextlib.nullcontext() if last else accelerator.no_sync(parts.wrapped)
            with sync:
                with autocast(accelerator.device):
                    terms = objective.terms(
                        parts.wrapped,
                        draw,
                        target=(parts.target or parts.ema).network,
                        teacher=parts.teacher,
                        log_variance=parts.log_variance,
                        progress=parts.progress,
                    )
                accelerator.backward(terms.loss / config.train.accumulation)
            parts.journal.add(loss=terms.loss.detach() / config.train.accumulation)
        limit = config.train.grad_clip
        norm = nn.utils.clip_grad_norm_(parts.trained(), limit or float("inf"))
        if bool(torch.isfinite(norm)):
            parts.optimizer.step()
            for average in parts.averages():
                average.update()
            skipped_in_a_row = 0
        else:
            parts.skipped += 1
            skipped_in_a_row += 1
        parts.optimizer.zero_grad(set_to_none=True)
        parts.step += 1
        parts.journal.add(grad_norm=norm.detach())
        parts.journal.count_step()
        stop = _agree(parts, stopped())
        _report(parts, skipped_in_a_row, stop)
        if stop:
            break
    accelerator.end_training()
    return parts.run_dir


def _dropout_seed(parts: Parts) -> int:
    """Seed of the dropout masks of this step on this rank."""
    keys = RowRandom.for_rows(parts.config.train.seed, parts.step, torch.tensor([parts.plan.rank]))
    return int(keys.keys[0]) % 2**32


def _agree(parts: Parts, signalled: bool) -> bool:
    """Whether to stop after this step: alike on every process, which ask each other at times.

    A signal reaches the processes in different steps; one that left alone would leave the others
    waiting for its gradients.
    """
    if parts.accelerator.num_processes == 1:
        return signalled
    if parts.step % STOP_EVERY:
        return False
    flag = torch.tensor(float(signalled), device=parts.accelerator.device)
    torch.distributed.all_reduce(flag)
    return bool(flag > 0)


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
    if main and (step % parts.config.ema.snapshot_every == 0 or step == train.steps):
        for std, average in parts.tracked.items():
            save_snapshot(parts.run_dir, step, std, average)
    if main and (step % train.checkpoint_every == 0 or last):
        facts = {
            "shape": parts.dataset.shape,
            "num_classes": parts.dataset.num_classes,
            "ema_updates": parts.ema.updates,
            "skipped": parts.skipped,
        }
        state = parts.optimizer.state_dict()
        checkpoint.save_checkpoint(
            parts.run_dir, step, parts.networks(), state, facts, train.keep_checkpoints
        )
