"""The training loop: exact resume, crashes, bad numbers, several processes, tuning."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import ucgm
from tests import group
from ucgm.data import Digits
from ucgm.nn import DiTConfig
from ucgm.objective import preset
from ucgm.runs import checkpoint
from ucgm.runs.config import Config
from ucgm.runs.settings import EMAConfig, OptimizerConfig, TrainConfig
from ucgm.runtime.files import sole_writer
from ucgm.runtime.sharding import Sharding
from ucgm.sampler import Sampler
from ucgm.training.ema import EMA
from ucgm.training.loop import train


def tiny(**train_settings):
    """A configuration whose step takes milliseconds."""
    settings = dict(steps=6, global_batch=16, log_every=1, preview_every=100, checkpoint_every=3)
    return Config(
        model=DiTConfig(size="N/4"),
        objective=preset("ucgm_multi"),
        data=Digits(),
        optimizer=OptimizerConfig(lr=1e-3, schedule="cosine", warmup_steps=2),
        ema=EMAConfig(decay=0.9, target_decay=0.5, warmup=False),
        train=TrainConfig(**(settings | train_settings)),
        sampler=Sampler(steps=1),
    )


def weights(run_dir, step, name="network"):
    return load_file(run_dir / "checkpoints" / f"step_{step:07d}" / f"{name}.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory):
    """A run of six steps with checkpoints at three and six; do not write into it."""
    return train(tiny(), tmp_path_factory.mktemp("six") / "run")


def copy_of(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def test_three_steps_a_stop_and_three_more_equal_six(six_steps, tmp_path):
    run = copy_of(six_steps, tmp_path)
    shutil.rmtree(run / "checkpoints" / "step_0000006")
    train(tiny(), run)
    for name in ("network", "ema", "target", "optimizer"):
        assert same(weights(run, 6, name), weights(six_steps, 6, name))
    logs = [
        [json.loads(x) for x in (r / "metrics.jsonl").read_text().splitlines()]
        for r in (run, six_steps)
    ]
    assert [x["step"] for x in logs[0]] == [1, 2, 3, 4, 5, 6]
    assert [x["loss"] for x in logs[0]] == [x["loss"] for x in logs[1]]


def test_weights_and_averages_differ_and_move(six_steps):
    one, two = weights(six_steps, 3), weights(six_steps, 6)
    assert not same(one, two)
    assert not same(weights(six_steps, 6), weights(six_steps, 6, "ema"))
    assert not same(weights(six_steps, 6, "target"), weights(six_steps, 6, "ema"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(six_steps, tmp_path, damage):
    run = copy_of(six_steps, tmp_path)
    victim = run / "checkpoints/step_0000006/ema.safetensors"
    content = bytearray(victim.read_bytes())
    if damage == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-1] ^= 1
        victim.write_bytes(content)
    else:
        victim.unlink()
    with pytest.warns(UserWarning, match="step_0000006 is damaged.*falling back"):
        train(tiny(), run)
    assert same(weights(run, 6, "ema"), weights(six_steps, 6, "ema"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.load_run(run).step == 6


def test_nothing_is_overwritten_when_every_checkpoint_is_damaged(six_steps, tmp_path):
    run = copy_of(six_steps, tmp_path)
    for path in (run / "checkpoints").glob("*/manifest.json"):
        path.write_text("{")
    before = sorted(run.rglob("*"))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="all 2 checkpoints"):
        train(tiny(), run)
    assert sorted(run.rglob("*")) == before


def test_a_folder_of_another_configuration_is_refused(six_steps, tmp_path):
    before = (six_steps / "config.yaml").read_text()
    with pytest.raises(ValueError, match="optimizer.lr: 0.001 in the run, 0.002 now"):
        train(replace(tiny(), optimizer=replace(tiny().optimizer, lr=2e-3)), six_steps)
    assert (six_steps / "config.yaml").read_text() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        train(tiny(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_two_trainings_in_one_folder_are_refused(six_steps, tmp_path):
    run = copy_of(six_steps, tmp_path)
    before = (run / "config.yaml").read_text()
    with sole_writer(run, "ucgm sample"):
        mine = f"ucgm sample .process {os.getpid()} on .*is writing {run}: wait"
        with pytest.raises(ValueError, match=mine):
            train(tiny(keep_checkpoints=1), run)
    assert (run / "config.yaml").read_text() == before
    train(tiny(keep_checkpoints=1), run)  # the first one is gone
    assert (run / "config.yaml").read_text() != before


def test_a_crash_in_the_first_moments_leaves_a_free_folder(tmp_path):
    for name in (".lock", ".config.yaml.77.tmp"):
        (tmp_path / name).write_text("x")
    assert checkpoint.newest_checkpoint(train(tiny(), tmp_path))[1]["step"] == 6


def test_periods_may_change_when_a_run_is_continued(six_steps, tmp_path):
    run = copy_of(six_steps, tmp_path)
    shutil.rmtree(run / "checkpoints" / "step_0000006")
    train(tiny(log_every=2, preview_every=4, checkpoint_every=5), run)
    assert same(weights(run, 6), weights(six_steps, 6))


def test_a_run_that_does_not_know_its_end_is_made_longer(tmp_path):
    endless = replace(tiny(), optimizer=OptimizerConfig(lr=1e-3))
    six, more = train(endless, tmp_path / "six"), tmp_path / "more"
    train(replace(endless, train=replace(endless.train, steps=3)), more)
    train(endless, more)
    for name in ("network", "ema", "optimizer"):
        assert same(weights(more, 6, name), weights(six, 6, name))
    cosine = replace(endless, optimizer=OptimizerConfig(lr=1e-3, schedule="cosine"))
    moving = replace(endless, objective=preset("ect"))
    for number, config in enumerate((cosine, moving)):
        run = train(replace(config, train=replace(config.train, steps=3)), tmp_path / str(number))
        with pytest.raises(ValueError, match="train.steps: 3 in the run, 6 now"):
            train(config, run)


def test_another_precision_is_said_when_a_run_is_continued(six_steps, tmp_path, monkeypatch):
    run = copy_of(six_steps, tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.warns(UserWarning, match="trained in precision no and goes on in bf16"):
        train(tiny(), run)


def _meet(world):
    sharding = Sharding(world.size, torch.device("cpu"), False)
    assert sharding.broadcast_from_rank0(lambda: {"rank": world.rank}) == {"rank": 0}

    def look():
        raise ValueError(f"damaged on {world.rank}")

    with pytest.raises(ValueError, match="damaged on 0"):
        sharding.broadcast_from_rank0(look)
    layer = torch.nn.BatchNorm1d(3)  # whole numbers too
    layer.weight.data.fill_(world.rank)
    layer.num_batches_tracked.fill_(world.rank)
    sharding.copy_first(layer)
    assert not layer.weight.any() and layer.num_batches_tracked == 0
    world.wait()


def test_all_processes_continue_from_what_the_first_one_found():
    group.finish(group.start(2, _meet))


def test_accumulation_is_the_same_step(six_steps, tmp_path):
    run = train(tiny(accumulation=4), tmp_path / "run")
    one, two = weights(run, 6), weights(six_steps, 6)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=2e-5)


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of 5"):
        train(tiny(accumulation=5), tmp_path / "run")


def test_few_step_tuning_starts_from_a_run(six_steps, tmp_path):
    config = replace(
        tiny(init=str(six_steps), steps=2), objective=preset("ucgm_few"), ema=EMAConfig(decay=0.9)
    )
    run = train(config, tmp_path / "few")
    teacher = load_file(run / "teacher.safetensors")
    assert same(teacher, weights(six_steps, 6, "ema"))
    assert not same(weights(run, 2), teacher)
    shutil.rmtree(run / "checkpoints")
    train(replace(config, train=replace(config.train, init=str(six_steps))), run)
    assert same(load_file(run / "teacher.safetensors"), teacher)


def test_few_step_tuning_without_a_teacher_or_with_another_path(six_steps, tmp_path):
    from ucgm.transport import Trig

    few = replace(tiny(), objective=preset("ucgm_few"))
    with pytest.raises(ValueError, match="train.init"):
        train(few, tmp_path / "one")
    assert not (tmp_path / "one").exists()  # so the corrected command finds a free folder
    other = replace(tiny(init=str(six_steps)), objective=preset("ucgm_few", transport=Trig()))
    with pytest.raises(ValueError, match="objective.transport"):
        train(other, tmp_path / "two")
    wide = replace(tiny(init=str(six_steps)), model=DiTConfig(size="N/2"))
    with pytest.raises(ValueError, match="does not fit the network"):
        train(wide, tmp_path / "three")


def test_load_run_says_what_there_is(six_steps, tmp_path):
    run = checkpoint.load_run(six_steps, step=3, weights="network")
    assert run.step == 3 and run.num_classes == 10 and run.shape == (1, 8, 8)
    assert same(dict(run.network.state_dict()), weights(six_steps, 3))
    with pytest.raises(ValueError, match="step_0000003"):
        checkpoint.load_run(six_steps, step=4)
    with pytest.raises(ValueError, match="no weights 'best'; there are ema, network"):
        checkpoint.load_run(six_steps, weights="best")
    with pytest.raises(ValueError, match="is .* a run folder"):
        checkpoint.load_run(tmp_path)
    beside = re.escape(str(six_steps))
    with pytest.raises(ValueError, match=f"a run folder. There are .*{beside}"):
        checkpoint.load_run(six_steps.parent / "fotos")


def test_ema_follows_the_closed_form():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    ema = EMA(network, 0.9, warmup=False)
    torch.nn.init.ones_(network.weight)
    for _ in range(5):
        ema.update()
    assert ema.network.weight.item() == pytest.approx(1 - 0.9**5, abs=1e-6)
    warm = EMA(network, 0.9)
    torch.nn.init.constant_(network.weight, 2.0)
    warm.update()
    assert warm.network.weight.item() == pytest.approx(2.0 - 0.1)


COMMAND = [
    *("train", "--model.class_path", "DiTConfig", "--model.init_args.size", "N/4"),
    *("--data", "Digits", "--train.global_batch", "16", "--train.log_every", "1"),
    *("--sampler.steps", "1", "--optimizer.lr", "1e-3"),
]


def start(launcher, *words, **environment):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment
    return subprocess.Popen(
        [*launcher, "-m", "ucgm", *COMMAND, *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    words = ["--train.steps", "4", "--train.checkpoint_every", "4"]
    # Muon's iterations are in bfloat16, which makes 1e-4 of a rounding of 1e-7.
    words += ["--optimizer.name", "adamw", "--optimizer.lr", "2e-4"]
    two = start(TORCHRUN, *words, "--run-dir", str(tmp_path / "two"))
    output = two.communicate(timeout=180)[0]
    assert two.returncode == 0, output
    assert output.count("batch 16 (2 processes x 8 rows) on cpu") == 1
    assert output.count("chosen for these data") == 1, output
    one = start([sys.executable], *words, "--run-dir", str(tmp_path / "one"))
    assert one.wait(timeout=120) == 0
    first, second = weights(tmp_path / "one", 4), weights(tmp_path / "two", 4)
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_one_process_where_two_were_asked_for_is_an_error(tmp_path):
    launcher = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    ]
    process = start(launcher, "--run-dir", str(tmp_path / "run"), "--train.steps", "2")
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "2 processes were asked for and 1 runs" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_continues(six_steps, tmp_path):
    words = ["--train.steps", "60", "--train.checkpoint_every", "2", "--train.preview_every", "7"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert start([sys.executable], *words, "--run-dir", str(straight)).wait(timeout=120) == 0
    for round_ in range(3):
        process = start([sys.executable], *words, "--run-dir", str(killed))
        for line in process.stdout:
            if line.startswith("step "):
                break
        time.sleep(0.11 * (round_ + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start([sys.executable], *words, "--run-dir", str(killed))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert not output.startswith(f"run {killed}: step 0 of")
    assert same(weights(straight, 60), weights(killed, 60))
    assert same(weights(straight, 60, "ema"), weights(killed, 60, "ema"))
    steps = [json.loads(x)["step"] for x in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, sharding",
    [([sys.executable], "none"), (TORCHRUN, "none"), (TORCHRUN, "fsdp2")],
    ids=["one", "two", "sharded"],
)
def test_sigterm_saves_and_ends_well(tmp_path, launcher, sharding):
    """With torchrun the signal reaches its workers in different steps, and they stop in one."""
    run = tmp_path / "run"
    words = ["--train.steps", "100000", "--train.sharding", sharding]
    process = start(launcher, "--run-dir", str(run), *words)
    for line in process.stdout:
        if line.startswith("step 5"):
            break
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 0 or launcher is TORCHRUN, output  # torchrun itself reports 1
    assert checkpoint.load_run(run).step >= 5


def test_a_script_that_is_told_to_stop_does_not_go_on_with_half_a_training(tmp_path):
    log = tmp_path / "run" / "metrics.jsonl"

    def stop():
        while not (log.exists() and log.stat().st_size):  # then signals are waited for
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    settings = tiny(steps=100_000, checkpoint_every=100_000, log_every=1)
    with pytest.raises(InterruptedError, match=r"run was told to stop at step [\d,]+ of 100,000"):
        ucgm.train(settings, tmp_path / "run")
    assert checkpoint.load_run(tmp_path / "run").step > 0
