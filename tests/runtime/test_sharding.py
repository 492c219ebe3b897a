"""Several processes: one curve for any number of them, replicated (DDP) or sharded (FSDP2)."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import job, run_jobs
from tests.training.test_train import same, tiny, weights
from ucgm.cli import commands as cli
from ucgm.nn import DiTConfig, EDM2Config
from ucgm.objective import preset
from ucgm.runs import checkpoint
from ucgm.runs.settings import EMAConfig, OptimizerConfig
from ucgm.runtime.sharding import Sharding
from ucgm.training.loop import train

OBJECTIVES = {
    "flow_matching": preset("flow_matching"),
    "ucgm_multi": preset("ucgm_multi"),
    "ucgm_few": preset("ucgm_few"),
    "ucgm_few_jvp": preset("ucgm_few", tangent="jvp"),
}


def config(objective, start=None, sharding="none", **train_settings):
    """Twenty steps with the default optimizer, on two micro-batches of eight."""
    settings = dict(steps=20, checkpoint_every=10, sharding=sharding, init=start, grad_clip=1.0)
    return replace(
        tiny(**(settings | train_settings)), objective=objective, optimizer=OptimizerConfig()
    )


def losses(run):
    return [json.loads(x)["loss"] for x in (run / "metrics.jsonl").read_text().splitlines()]


def assert_close(one, two, step=20):
    """Every tensor of two checkpoints and every loss, to 1e-5."""
    folders = [r / "checkpoints" / f"step_{step:07d}" for r in (one, two)]
    files = [sorted(p.name for p in f.glob("*.safetensors")) for f in folders]
    assert files[0] == files[1]
    for name in files[0]:
        first, second = (load_file(f / name) for f in folders)
        assert first.keys() == second.keys()
        if name != "optimizer.safetensors":  # moments are in units of the gradient
            for key in first:
                torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-5)
    torch.testing.assert_close(losses(one), losses(two), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    base = replace(tiny(steps=40, log_every=40), objective=preset("flow_matching"))
    return str(train(base, tmp_path_factory.mktemp("teacher") / "run"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher):
    """Every objective on 1, 2 and 4 processes, and sharded on 2: folders by objective and kind."""
    root, jobs = tmp_path_factory.mktemp("processes"), []
    for name, objective in OBJECTIVES.items():
        start = teacher if objective.needs_teacher else None
        for world in (1, 2, 4):
            jobs.append(job(config(objective, start), root / name / str(world), world))
        sharded = config(objective, start, "fsdp2")
        jobs.append(job(sharded, root / name / "fsdp2", 2))
    for one, (codes, output) in zip(jobs, run_jobs(*jobs), strict=True):
        assert not any(codes), (one["run_dir"], output)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_curve_for_1_2_and_4_processes(runs, name):
    for world in ("2", "4"):
        assert_close(runs / name / "1", runs / name / world)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_sharded_weights_are_those_of_ddp(runs, name):
    assert_close(runs / name / "2", runs / name / "fsdp2")
    if OBJECTIVES[name].needs_teacher:
        one, two = (load_file(runs / name / k / "teacher.safetensors") for k in ("2", "fsdp2"))
        assert same(one, two)


@pytest.mark.slow
def test_a_run_crosses_between_sharded_and_replicated(runs, tmp_path):
    jobs, kinds = [], (("2", "fsdp2", 2), ("fsdp2", "none", 2), ("fsdp2", "none", 1))
    for start, sharding, world in kinds:
        run = shutil.copytree(runs / "ucgm_multi" / start, tmp_path / f"{start}_{world}")
        shutil.rmtree(run / "checkpoints" / "step_0000020")
        (run / "config.yaml").write_text((runs / "ucgm_multi" / "2/config.yaml").read_text())
        jobs.append(job(config(OBJECTIVES["ucgm_multi"], sharding=sharding), run, world))
    for one, (codes, output) in zip(jobs, run_jobs(*jobs), strict=True):
        assert not any(codes), output
        assert "step 10 of 20" in output
        assert_close(runs / "ucgm_multi" / "2", one["run_dir"])


@pytest.mark.slow
def test_a_sharded_run_is_loaded_and_exported_like_any_other(runs, tmp_path):
    run = runs / "ucgm_multi" / "fsdp2"
    loaded = checkpoint.load_run(run)
    assert same(dict(loaded.network.state_dict()), weights(run, 20, "ema"))
    assert (run / "samples" / "step_0000020.png").is_file()
    cli.main(["export", str(run), "--diffusers", str(tmp_path / "out")])
    assert list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.slow
def test_accumulation_power_averages_and_a_learned_variance_sharded(tmp_path):
    """The parts that only some objectives have, with two micro-batches a step."""
    settings = config(preset("edm2"), accumulation=2, steps=8, checkpoint_every=8)
    settings = replace(settings, ema=EMAConfig(decay=0.9, tracked=(0.1,), snapshot_every=4))
    sharded = replace(settings, train=replace(settings.train, sharding="fsdp2"))
    jobs = [job(settings, tmp_path / "ddp", 2), job(sharded, tmp_path / "fsdp2", 2)]
    for codes, output in run_jobs(*jobs):
        assert not any(codes), output
    assert_close(tmp_path / "ddp", tmp_path / "fsdp2", 8)
    assert "linear.weight" in weights(tmp_path / "ddp", 8, "log_variance")
    names = [sorted(p.name for p in (tmp_path / k / "ema").iterdir()) for k in ("ddp", "fsdp2")]
    assert names[0] == names[1] and len(names[0]) == 2


@pytest.mark.slow
def test_half_precision_sharded(tmp_path, teacher, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    settings = config(OBJECTIVES["ucgm_few_jvp"], teacher, steps=8, checkpoint_every=8)
    sharded = replace(settings, train=replace(settings.train, sharding="fsdp2"))
    jobs = [job(settings, tmp_path / "ddp", 2), job(sharded, tmp_path / "fsdp2", 2)]
    for codes, output in run_jobs(*jobs):
        assert not any(codes), output
        assert "in bfloat16 autocast" in output
    assert_close(tmp_path / "ddp", tmp_path / "fsdp2", 8)


@pytest.mark.slow
def test_a_process_without_rows_for_a_pass(tmp_path, teacher):
    """One row each: in most steps one process needs a pass that the other has no row for."""
    jobs = []
    for name in ("ucgm_multi", "ucgm_few", "meanflow", "twinflow"):
        objective = preset(name)
        start = teacher if objective.needs_teacher else None
        for kind in ("none", "fsdp2"):
            settings = config(objective, start, kind, steps=10, global_batch=2)
            model = DiTConfig(size="N/4", second_time=objective.two_time)
            jobs.append(job(replace(settings, model=model), tmp_path / name / kind, 2))
    for one, (codes, output) in zip(jobs, run_jobs(*jobs), strict=True):
        assert not any(codes), (one["run_dir"], output)
    for name in ("ucgm_multi", "ucgm_few", "meanflow", "twinflow"):
        assert_close(tmp_path / name / "none", tmp_path / name / "fsdp2", 10)


def test_what_cannot_be_sharded_and_one_process_that_need_not(tmp_path):
    run = train(config(preset("flow_matching"), sharding="fsdp2", steps=2), tmp_path / "run")
    assert checkpoint.load_run(run).step == 2
    sharding = Sharding(1, torch.device("cpu"), True)
    sharding.mesh = object()
    with pytest.raises(ValueError, match="EDM2 changes its weights.*train.sharding: none"):
        sharding.place(EDM2Config(model_channels=64, num_blocks=1).build((4, 8, 8), 10))
    flow_map = replace(
        config(preset("terminal_velocity"), sharding="fsdp2"),
        model=DiTConfig(size="N/4", second_time=True),
    )
    with pytest.raises(ValueError, match="forward derivative.*train.sharding: none"):
        train(flow_map, tmp_path / "two")
