"""Training: the loop on one screen.

The step is: batch, draw, terms, backward, clip, step, EMA.  Everything random in it is a function
of (seed, step, row), so a run is the same on any number of processes, and resuming is exact.  The
host asks for work and reads nothing back: what is logged is summed on the device, whether a step
is taken is decided there (:mod:`ucgm.training.nonfinite`), and checkpoints are written by a thread.
"""

import contextlib
import functools
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ucgm.data.loader import batches, sample_indices
from ucgm.generation.samples import SampleSet
from ucgm.generation.writers import join_grid, save_grid
from ucgm.runs.config import Config
from ucgm.runs.saving import Writer, host_copies, save_checkpoint, save_snapshot
from ucgm.runtime.precision import autocast, precision
from ucgm.runtime.randomness import RowRandom
from ucgm.runtime.sharding import clip_gradients
from ucgm.training.build import TrainState, build_train_state
from ucgm.training.log import half_life
from ucgm.training.nonfinite import poison_gradients
from ucgm.training.throughput import peak_memory
from ucgm.training.trackers import track_picture

# Steps between the questions of several processes whether one of them was told to stop.
STOP_EVERY = 10


def train(config: Config, run_dir: str | Path) -> Path:
    """Train, or continue the training in ``run_dir``; returns the run folder.

    Raises:
        ValueError: a run folder of another configuration, or settings that do not fit together.
        RuntimeError: too many steps in a row without a finite loss and gradient, or a checkpoint
            that could not be written.
    """
    with contextlib.ExitStack() as held:
        parts = build_train_state(config, Path(run_dir), held)
        stream = batches(
            parts.dataset,
            parts.plan,
            config.train.seed,
            parts.step,
            config.train.num_workers,
            parts.accelerator.device,
        )
        waiting = parts.journal.waiting(stream)
        with _signals(parts) as stopped, Writer(parts.run_dir) as writer:
            while parts.step < config.train.steps:
                _step(parts, waiting)
                stop = _agree(parts, stopped())
                _report(parts, writer, stop)
                if stop:
                    break
        parts.accelerator.end_training()
    return parts.run_dir


def _step(parts: TrainState, stream: Iterator[tuple[Tensor, Tensor]]) -> None:
    """One optimizer step."""
    train, objective, networks = parts.config.train, parts.config.objective, parts.networks
    device = parts.accelerator.device
    torch.manual_seed(_dropout_seed(parts))
    for group in parts.optimizer.param_groups:
        group["lr"] = parts.config.optimizer.lr_at(parts.step, train.steps)
    loss = torch.zeros((), device=device)
    for micro in range(train.accumulation):
        x, y = (v.to(device, non_blocking=True) for v in next(stream))
        labels = y if parts.null_label is not None else None
        keys = RowRandom.for_rows(train.seed, parts.step, parts.plan.rows(micro))
        draw = objective.draw(x, labels, parts.null_label, keys, parts.progress)
        with parts.exchanging(last=micro == train.accumulation - 1):
            with autocast(device, sharded=parts.sharding.mesh is not None):
                terms = objective.terms(
                    parts.wrapped,
                    draw,
                    target=(networks.target or networks.ema).network,
                    teacher=networks.teacher,
                    log_variance=parts.wrapped_variance,
                    progress=parts.progress,
                )
            (poison_gradients(terms.loss) / train.accumulation).backward()
        loss += terms.loss.detach() / train.accumulation
        parts.journal.add_rows(draw.t, terms.per_sample.detach())
    norm = clip_gradients(parts.trained, train.grad_clip)
    taken = parts.guard.step(parts.optimizer, networks.averages(), norm, parts.step)
    parts.optimizer.zero_grad(set_to_none=True)
    parts.step += 1
    parts.journal.add(loss=torch.where(taken, loss, torch.nan), grad_norm=norm)
    parts.journal.count_step()


def _dropout_seed(parts: TrainState) -> int:
    """Seed of the dropout masks of this step on this rank."""
    keys = RowRandom.for_rows(parts.config.train.seed, parts.step, torch.tensor([parts.plan.rank]))
    return int(keys.keys[0]) % 2**32


def _agree(parts: TrainState, signalled: bool) -> bool:
    """Whether to stop after this step: alike on every process, which ask each other at times.

    A signal reaches the processes in different steps; one that left alone would leave the others
    waiting for its gradients.
    """
    if parts.plan.world > 1 and parts.step % STOP_EVERY:
        return False
    return parts.sharding.any_rank(signalled)


@contextlib.contextmanager
def _signals(parts: TrainState) -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGTERM or SIGINT has arrived; afterwards they end a program.

    A second one changes nothing, because a launcher and a terminal each send their own.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if not received and parts.accelerator.is_main_process:
            said = f"{signal.Signals(number).name}: saving a checkpoint, then ending\n"
            # A print may be what the signal interrupted, and cannot be entered twice.
            with contextlib.suppress(OSError):
                os.write(2, said.encode())
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(parts: TrainState, writer: Writer, stop: bool) -> None:
    """Log, preview and save, each in its period; stop a run that has diverged."""
    writer.check()
    train, step = parts.config.train, parts.step
    last = step == train.steps or stop
    if step % train.log_every == 0 or last:
        skipped, in_a_row, bad_step = parts.guard.read()
        parts.journal.write(
            step,
            parts.optimizer.param_groups[0]["lr"],
            skipped,
            ema_half_life=half_life(float(parts.networks.ema.weight())),
            memory_gib=peak_memory(parts.accelerator.device),
        )
        if in_a_row >= train.max_skipped:
            raise RuntimeError(
                f"{in_a_row} steps in a row had a loss or gradient that is not finite, the last "
                f"of them step {bad_step + 1}. {_describe_batch(parts, bad_step)} The last "
                "checkpoint is untouched."
            )
    jobs: list[Callable[[], object]] = []
    if step % parts.config.ema.snapshot_every == 0 or step == train.steps:
        jobs += _snapshots(parts)
    if (
        step % train.checkpoint_every == 0
        or (train.milestone_every and step % train.milestone_every == 0)
        or last
    ):
        jobs.append(_checkpoint(parts))
    if jobs and parts.accelerator.is_main_process:
        writer.submit(*jobs)
    # Last, and not for a run that was told to stop: who told it to may not wait for a picture.
    if not stop and (step % train.preview_every == 0 or step == train.steps):
        _preview(parts)


def _preview(parts: TrainState) -> None:
    """A picture of samples; processes that share one network all sample, and the first decodes."""
    main, device = parts.accelerator.is_main_process, parts.accelerator.device
    shared = parts.sharding.mesh is not None
    blind = main and not _decodes(parts)
    if (parts.sharding.any_rank(blind) if shared else blind) or not (main or shared):
        return
    network = parts.networks.ema.network
    samples = SampleSet(network, parts.config.sampler, parts.dataset, device=device)
    if not main:
        join_grid(samples)
        return
    picture = parts.run_dir / "samples" / f"step_{parts.step:07d}.png"
    save_grid(samples, picture)
    track_picture(parts.accelerator, "preview", picture, parts.step)


def _decodes(parts: TrainState) -> bool:
    """Whether samples can become pictures here; a training needs no autoencoder, and goes on."""
    data = parts.dataset
    try:
        data.decode(torch.zeros(1, *data.shape, device=parts.accelerator.device))
    except (ValueError, OSError) as error:
        warnings.warn(f"no preview: {error}", stacklevel=2)
        return False
    return True


def _snapshots(parts: TrainState) -> list[Callable[[], object]]:
    """What writes the power-function averages as they are now."""
    main, jobs = parts.accelerator.is_main_process, []
    for std, average in parts.networks.tracked.items():
        if main or parts.sharding.mesh is not None:
            state = host_copies(average.network.state_dict(), keep=main)
            arguments = (parts.run_dir, parts.step, std, average.updates, state)
            jobs.append(functools.partial(save_snapshot, *arguments))
    return jobs


def _checkpoint(parts: TrainState) -> Callable[[], object]:
    """What writes the checkpoint of this moment."""
    train = parts.config.train
    skipped, in_a_row, _ = parts.guard.read()
    facts = {
        "shape": parts.dataset.shape,
        "num_classes": parts.dataset.num_classes,
        "ema_updates": parts.networks.ema.updates,
        "precision": precision(),
        "skipped": skipped,
        "skipped_in_a_row": in_a_row,
    }
    return functools.partial(
        save_checkpoint,
        parts.run_dir,
        parts.step,
        parts.states(),
        facts,
        train.keep_checkpoints,
        train.milestone_every,
    )


def _describe_batch(parts: TrainState, step: int) -> str:
    """Which samples and times were in the batch of ``step``, in words; all of them in a file."""
    train, data = parts.config.train, parts.dataset
    rows = torch.arange(train.global_batch)
    indices = sample_indices(len(data), train.seed, step * train.global_batch + rows)
    stored, y = data.read(indices)
    x = data.prepare(stored).cpu()
    keys = RowRandom.for_rows(train.seed, step, rows)
    labels = y if parts.null_label is not None else None
    draw = parts.config.objective.draw(x, labels, parts.null_label, keys, step / train.steps)
    finite = x.flatten(1).isfinite().all(1).tolist()
    table = list(zip(indices.tolist(), draw.t.tolist(), finite, strict=True))
    path = parts.run_dir / "bad_batch.json"
    if parts.accelerator.is_main_process:
        lines = [{"sample": i, "time": t, "finite": ok} for i, t, ok in table]
        path.write_text(json.dumps({"step": step + 1, "rows": lines}, indent=1))
    bad = [(i, t) for i, t, ok in table if not ok]
    shown = ", ".join(f"{i} at t = {t:.3f}" for i, t in (bad or [r[:2] for r in table])[:8])
    if bad:
        return (
            f"{len(bad)} samples of its batch hold values that are not finite ({shown}; the whole "
            f"batch is in {path}): repair them in {data.name}."
        )
    return (
        f"Its {len(table)} samples are finite ({shown}, ...; all in {path}): lower optimizer.lr "
        "or set train.grad_clip."
    )
