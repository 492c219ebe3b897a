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
from ucgm.objective import Draw
from ucgm.runs.averages import save_snapshot
from ucgm.runs.config import Config
from ucgm.runs.saving import CHECKPOINTS, Writer, host_copies, save_checkpoint
from ucgm.runtime.precision import autocast, precision
from ucgm.runtime.randomness import RowRandom
from ucgm.training.build import TrainState, build_train_state
from ucgm.training.log import half_life
from ucgm.training.nonfinite import clip_gradients, poison_gradients
from ucgm.training.throughput import peak_memory
from ucgm.training.trackers import track_picture

# Several processes ask each other in every so many steps whether one of them was told to stop.
STOP_EVERY = 10


def train(config: Config, run_dir: str | Path) -> Path:
    """Train, or continue the training in ``run_dir``; returns the run folder.

    Raises what :func:`ucgm.training.start.train` says.
    """
    with contextlib.ExitStack() as held:
        state = build_train_state(config, Path(run_dir), held)
        settings, device = config.train, state.accelerator.device
        stream = state.log.waiting(
            batches(
                state.dataset, state.plan, settings.seed, state.step, settings.num_workers, device
            )
        )
        with _signals(state) as received, Writer(state.run_dir) as writer:
            while state.step < settings.steps:
                _step(state, stream)
                stop = _agree_to_stop(state, bool(received))
                _report(state, writer, stop)
                if stop:
                    break
        state.accelerator.end_training()
        if state.accelerator.is_main_process:
            if state.mirror is not None:
                state.mirror.finish()
            print(_last_line(state), flush=True)
    return state.run_dir


def _last_line(state: TrainState) -> str:
    """Where the result is, and what to do next."""
    run = state.run_dir
    saved = f"saved {run}/{CHECKPOINTS}/step_{state.step:07d}; next: "
    if state.step < state.config.train.steps:
        return f"{saved}ucgm train --run-dir {run}  (goes on)"
    return f"{saved}ucgm sample {run}  or  ucgm benchmark {run}"


def _step(state: TrainState, stream: Iterator[tuple[Tensor, Tensor]]) -> None:
    """One optimizer step."""
    train, objective, networks = state.config.train, state.config.objective, state.networks
    device = state.accelerator.device
    # Dropout masks are those of this step on this rank.
    keys = RowRandom.for_rows(train.seed, state.step, torch.tensor([state.plan.rank])).keys
    torch.manual_seed(int(keys[0]) % 2**32)
    for group in state.optimizer.param_groups:
        group["lr"] = state.config.optimizer.lr_at(state.step, train.steps)
    loss = torch.zeros((), device=device)
    for micro in range(train.accumulation):
        x, y = next(stream)
        draw = _draw(state, state.step, state.plan.rows(micro), x, y)
        sets = networks.sets and networks.sets.of_rows(state.step, state.plan.rows(micro))
        if networks.alignment is not None:
            networks.alignment.see(state.step, state.plan.rows(micro), x)
        with state.exchanging(last=micro == train.accumulation - 1):
            with autocast(device, sharded=state.sharding.mesh is not None):
                terms = objective.terms(
                    state.wrapped,
                    draw,
                    target=(networks.target or networks.ema).network,
                    teacher=networks.teachers,
                    log_variance=state.wrapped_variance,
                    sets=sets,
                    alignment=state.wrapped_alignment,
                    progress=state.step / train.steps,
                )
            (poison_gradients(terms.loss) / train.accumulation).backward()
        loss += terms.loss.detach() / train.accumulation
        if objective.residual_weight:
            state.log.add_rows(draw.t, terms.per_sample.detach())
    norm = clip_gradients(state.trained, train.grad_clip)
    taken = state.skipper.step(state.optimizer, networks.averages(), norm, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    measured = networks.sets.distances() if networks.sets else {}
    state.log.add_step(loss=torch.where(taken, loss, torch.nan), grad_norm=norm, **measured)


def _draw(state: TrainState, step: int, rows: Tensor, x: Tensor, y: Tensor) -> Draw:
    """Everything random of ``rows`` (B,) of the global batch of ``step``."""
    train, null_label = state.config.train, state.dataset.num_classes or None
    keys = RowRandom.for_rows(train.seed, step, rows)
    labels = None if null_label is None else y
    return state.config.objective.draw(x, labels, null_label, keys, step / train.steps)


def _agree_to_stop(state: TrainState, signalled: bool) -> bool:
    """Whether to stop after this step: alike on every process, which ask each other at times.

    A signal reaches the processes in different steps; one that left alone would leave the others
    waiting for its gradients.
    """
    if state.plan.world > 1 and state.step % STOP_EVERY:
        return False
    return state.sharding.any_rank(signalled)


@contextlib.contextmanager
def _signals(state: TrainState) -> Iterator[list[int]]:
    """A list that receives SIGTERM and SIGINT, which end the program again afterwards.

    A second one changes nothing, because a launcher and a terminal each send their own.
    """
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        if not received and state.accelerator.is_main_process:
            line = f"{signal.Signals(number).name}: saving a checkpoint, then ending\n"
            # A print may be what the signal interrupted, and cannot be entered twice.
            with contextlib.suppress(OSError):
                os.write(2, line.encode())
        received.append(number)

    before = {n: signal.signal(n, receive) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(state: TrainState, writer: Writer, stop: bool) -> None:
    """Log, preview and save, each in its period; stop a run that has diverged."""
    writer.check()
    train, step = state.config.train, state.step
    last = step == train.steps or stop
    if step % train.log_every == 0 or last:
        skipped, in_a_row, bad_step = state.skipper.read()
        state.log.write(
            step,
            state.optimizer.param_groups[0]["lr"],
            skipped,
            ema_half_life=half_life(float(state.networks.ema.weight())),
            memory_gib=peak_memory(state.accelerator.device),
        )
        if in_a_row >= train.max_skipped:
            raise RuntimeError(
                f"{in_a_row} steps in a row had a loss or gradient that is not finite, the last "
                f"of them step {bad_step + 1}. {_describe_batch(state, bad_step)} The last "
                "checkpoint is untouched."
            )
    # Of replicas the first process does the rest; processes that share a network all gather it.
    main = state.accelerator.is_main_process
    if not main and state.sharding.mesh is None:
        return
    state.log.beat(step)
    jobs: list[Callable[[], object]] = []
    if step % state.config.ema.snapshot_every == 0 or step == train.steps:
        jobs += _snapshots(state)
    milestone = train.milestone_every is not None and step % train.milestone_every == 0
    if step % train.checkpoint_every == 0 or milestone or last:
        jobs.append(_checkpoint(state))
    if jobs and state.mirror is not None:
        jobs.append(state.mirror.try_push)
    if jobs and main:
        writer.submit(*jobs)
    # Last, and not in a run that was told to stop: it may be killed while it draws.
    if not stop and (step % train.preview_every == 0 or step == train.steps):
        _preview(state)


def _snapshots(state: TrainState) -> list[Callable[[], object]]:
    """Jobs that write the power-function averages as they are now."""
    jobs = []
    for std, average in state.networks.tracked.items():
        weights = host_copies(average.network.state_dict(), state.accelerator.is_main_process)
        arguments = (state.run_dir, state.step, std, average.updates, weights)
        jobs.append(functools.partial(save_snapshot, *arguments))
    return jobs


def _checkpoint(state: TrainState) -> Callable[[], object]:
    """A job that writes the checkpoint of this moment."""
    train = state.config.train
    skipped, in_a_row, _ = state.skipper.read()
    facts = {
        "shape": state.dataset.shape,
        "num_classes": state.dataset.num_classes,
        "ema_updates": state.networks.ema.updates,
        "precision": precision(),
        "skipped": skipped,
        "skipped_in_a_row": in_a_row,
    }
    kept = (train.keep_checkpoints, train.milestone_every)
    arguments = (state.run_dir, state.step, state.states(), facts, *kept)
    return functools.partial(save_checkpoint, *arguments)


def _preview(state: TrainState) -> None:
    """A picture of samples; processes that share one network all sample, and the first decodes."""
    main, device = state.accelerator.is_main_process, state.accelerator.device
    blind = main and not _decodes(state)
    if blind if state.sharding.mesh is None else state.sharding.any_rank(blind):
        return
    network = state.networks.ema.network
    samples = SampleSet(network, state.config.sampler, state.dataset, device=device)
    if not main:
        join_grid(samples)
        return
    picture = state.run_dir / "samples" / f"step_{state.step:07d}.png"
    save_grid(samples, picture)
    track_picture(state.accelerator, picture, state.step)


def _decodes(state: TrainState) -> bool:
    """Whether samples can become pictures here; a training needs no autoencoder, and goes on."""
    data = state.dataset
    try:
        data.decode(torch.zeros(1, *data.shape, device=state.accelerator.device))
    except (ValueError, OSError) as error:
        warnings.warn(f"no preview: {error}", stacklevel=2)
        return False
    return True


def _describe_batch(state: TrainState, step: int) -> str:
    """Which samples and times were in the batch of ``step``, in words; all of them in a file."""
    train, data = state.config.train, state.dataset
    rows = torch.arange(train.global_batch)
    indices = sample_indices(len(data), train.seed, step * train.global_batch + rows)
    stored, y = data.read(indices)
    x = data.prepare(stored).cpu()
    draw = _draw(state, step, rows, x, y)
    finite = x.flatten(1).isfinite().all(1).tolist()
    table = list(zip(indices.tolist(), draw.t.tolist(), finite, strict=True))
    path = state.run_dir / "bad_batch.json"
    if state.accelerator.is_main_process:
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
