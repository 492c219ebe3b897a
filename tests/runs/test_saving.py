"""Checkpoints: written behind the training, whole at every instant, errors that surface."""

import json
import os
import resource
import shutil
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from tests.training.test_train import same, tiny, weights
from ucgm.data import Digits, DigitsDataset
from ucgm.generation.samples import SampleSet
from ucgm.generation.writers import join_grid, save_grid
from ucgm.runs import checkpoint, saving
from ucgm.runs.saving import (
    Writer,
    host_copies,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from ucgm.runtime import files
from ucgm.sampler import Sampler
from ucgm.training import loop as trainer
from ucgm.training.loop import train
from ucgm.training.nonfinite import NonFiniteSkipper


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory):
    return train(tiny(), tmp_path_factory.mktemp("saving") / "run")


def at_step(monkeypatch, number, action):
    """Call ``action`` in the training when it takes step ``number`` (from 0)."""
    original = NonFiniteSkipper.step

    def step(self, optimizer, averages, norm, now):
        if now == number:
            action()
        return original(self, optimizer, averages, norm, now)

    monkeypatch.setattr(NonFiniteSkipper, "step", step)


def test_the_training_goes_on_while_its_checkpoint_is_written(six_steps, tmp_path, monkeypatch):
    """The checkpoint of step 3 is held up until step 6, and is still that of step 3."""
    reached, waited = threading.Event(), []

    def late(run_dir, step, *arguments):
        waited.append(reached.wait(20))
        return save_checkpoint(run_dir, step, *arguments)

    monkeypatch.setattr(trainer, "save_checkpoint", late)
    at_step(monkeypatch, 5, reached.set)
    run = train(tiny(), tmp_path / "run")
    assert waited == [True, True]
    for step in (3, 6):
        for name in ("network", "ema", "target", "optimizer"):
            assert same(weights(run, step, name), weights(six_steps, step, name))


def test_a_full_disk_is_an_error_of_the_run_and_costs_no_checkpoint(
    six_steps, tmp_path, monkeypatch
):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    latest = tmp_path / "run" / "latest"

    def fill_the_disk():  # after the checkpoint of step 3, which is written behind the training
        end = time.monotonic() + 20
        while not latest.exists() and time.monotonic() < end:
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    at_step(monkeypatch, 4, fill_the_disk)
    try:
        with pytest.raises(RuntimeError, match="could not be written: .*File too large.*same comm"):
            train(tiny(), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step_0000003"]
    assert latest.read_text() == "step_0000003\n"
    monkeypatch.undo()
    run = train(tiny(), tmp_path / "run")
    assert same(weights(run, 6, "ema"), weights(six_steps, 6, "ema"))


def test_an_exception_in_the_training_waits_for_the_checkpoint(tmp_path, monkeypatch):
    def slow(run_dir, step, *arguments):
        time.sleep(0.3)
        return save_checkpoint(run_dir, step, *arguments)

    def fail():
        raise KeyError("mine")

    monkeypatch.setattr(trainer, "save_checkpoint", slow)
    at_step(monkeypatch, 3, fail)
    with pytest.raises(KeyError, match="mine"):
        train(tiny(), tmp_path / "run")
    assert checkpoint.load_run(tmp_path / "run").step == 3
    assert not [t for t in threading.enumerate() if t.name.startswith("ucgm-checkpoint-writer")]


def test_the_newest_and_the_milestones_are_kept(tmp_path):
    run = train(tiny(steps=11, checkpoint_every=2, milestone_every=5), tmp_path / "run")
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert [int(name[5:]) for name in kept] == [5, 10, 11]


def test_a_damaged_checkpoint_further_on_costs_no_whole_one(tmp_path):
    """A run that fell back behind a damaged checkpoint keeps what it writes until it is there."""
    state = {"network": {"w": torch.zeros(3)}}
    for step in (50, 100):
        save_checkpoint(tmp_path, step, state, {}, 1)
    (tmp_path / "checkpoints/step_0000100/network.safetensors").write_bytes(b"")
    for step in (60, 70):
        save_checkpoint(tmp_path, step, state, {}, 1)
        with pytest.warns(UserWarning, match="step_0000100 is damaged"):
            assert checkpoint.newest_checkpoint(tmp_path)[1]["step"] == step
    save_checkpoint(tmp_path, 100, state, {}, 1)
    assert checkpoint.newest_checkpoint(tmp_path)[1]["step"] == 100
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_0000100"]


def test_a_run_that_is_told_to_stop_saves_and_draws_nothing(tmp_path, monkeypatch, capfd):
    """Who stops it may kill it half a minute later, and a picture can take longer."""
    told = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    run = train(tiny(preview_every=2), tmp_path / "run")
    assert checkpoint.newest_checkpoint(run)[1]["step"] == 4
    assert [p.name for p in (run / "samples").iterdir()] == ["step_0000002.png"]
    assert "SIGINT: saving a checkpoint, then ending" in capfd.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == told


def test_a_preview_that_fails_costs_no_checkpoint(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no memory")

    monkeypatch.setattr(trainer, "save_grid", fail)
    with pytest.raises(ValueError, match="no memory"):
        train(tiny(), tmp_path / "run")
    assert checkpoint.newest_checkpoint(tmp_path / "run")[1]["step"] == 6


def test_a_training_without_its_autoencoder_goes_on_without_pictures(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("the autoencoder is not here")

    monkeypatch.setattr(DigitsDataset, "decode", fail)
    with pytest.warns(UserWarning, match="no preview: the autoencoder is not here"):
        run = train(tiny(preview_every=2), tmp_path / "run")
    assert checkpoint.newest_checkpoint(run)[1]["step"] == 6
    assert not list((run / "samples").iterdir())


def test_who_joins_a_preview_makes_its_passes(tmp_path):
    """Of a sharded network a pass more or less on one process is a deadlock."""
    made = []

    def network(x, t, y, s=None):
        made.append(x.shape)
        return x

    data = Digits().open()
    data.num_classes = 1000  # scattered indices: by their numbers they would fill more tiles
    samples = SampleSet(network, Sampler(steps=2), data)
    save_grid(samples, tmp_path / "preview.png")
    drawn = made.copy()
    made.clear()
    join_grid(samples)
    assert made == drawn and len(made) == 8


class Crash(BaseException):
    """The machine stops here."""


def test_latest_is_right_after_a_crash_at_any_instant(tmp_path, monkeypatch):
    """Stop before every call that changes the folder, in turn."""
    state = {"network": {"w": torch.zeros(3)}}

    def save(run, step):
        save_checkpoint(run, step, state, {"shape": (1,)}, 1)

    def stop_at(count):
        left = [count]

        def wrap(function):
            def call(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    raise Crash
                return function(*arguments, **options)

            return call

        for where, name in (
            (saving.os, "replace"),
            (saving.shutil, "rmtree"),
            (saving, "sync"),
            (files, "sync"),
        ):
            monkeypatch.setattr(where, name, wrap(getattr(where, name)))
        return left

    done = False
    for count in range(40):
        run = tmp_path / str(count)
        for step in (1, 2):
            save(run, step)
        left = stop_at(count)
        try:
            save(run, 3)
            done = left[0] >= 0
        except Crash:
            pass
        monkeypatch.undo()
        named = (run / "latest").read_text().strip()
        facts = checkpoint.verify(run / "checkpoints" / named)
        assert facts["step"] in (2, 3)
        assert checkpoint.newest_checkpoint(run)[1]["step"] >= facts["step"]
        for folder in (run / "checkpoints").glob("step_*"):
            checkpoint.verify(folder)
        save(run, 4)
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_0000004"]
        if done:
            break
    assert done and count > 5


def test_a_writer_raises_once_what_its_thread_met(tmp_path):
    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(RuntimeError, match="No space left"), Writer(tmp_path) as writer:
        writer.submit(fail)
        with pytest.raises(RuntimeError, match="checkpoints before it are untouched"):
            writer.join()
        writer.check()
        writer.submit(fail)


def test_an_optimizer_is_restored_by_name(tmp_path):
    network = torch.nn.Linear(3, 2)
    names = {p: name for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(list(names), fused=True)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = host_copies(optimizer_state(optimizer, names))
    assert set(state) == {f"{n}/{k}" for n in ("weight", "bias") for k in
                          ("step", "exp_avg", "exp_avg_sq")}  # fmt: skip
    fresh = torch.optim.AdamW(list(names), fused=True)
    save_file(state, tmp_path / "o")
    restore_optimizer(fresh, names, tmp_path / "o")
    again = optimizer_state(fresh, names)
    assert same(state, again)
    save_file(state | {"other/step": torch.zeros(())}, tmp_path / "o")
    with pytest.raises(ValueError, match="'other' is unknown"):
        restore_optimizer(fresh, names, tmp_path / "o")


def test_a_run_without_an_optimizer_is_not_continued(six_steps, tmp_path):
    run = shutil.copytree(six_steps, tmp_path / "run")
    for folder in (run / "checkpoints").iterdir():
        (folder / "optimizer.safetensors").unlink()
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["files"]["optimizer.safetensors"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="no training to continue: name it in train.init"):
        train(tiny(), run)
