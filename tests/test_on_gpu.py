"""The whole road on a card, where there is one: ``python -m pytest -m cuda``."""

import shutil
from dataclasses import replace

import pytest
import torch

from tests.training.test_gpu_step import config_of, step_on_gpu
from tests.training.test_optim import NAMES, give_gradients, named, network
from tests.training.test_train import tiny, weights
from ucgm.evaluation.benchmark import benchmark
from ucgm.generation.command import sample_run
from ucgm.objective import preset
from ucgm.runs.settings import OptimizerConfig
from ucgm.training.loop import train
from ucgm.training.optim import build_optimizer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_three_steps_and_three_more_are_six(precision, tmp_path, monkeypatch):
    """Resumed weights are those of a run that went through, up to the order of sums."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    run = train(tiny(), tmp_path / "run")
    again = shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "step_0000006")
    train(tiny(), again)
    for name in ("network", "ema"):
        one, two = (weights(r, 6, name) for r in (run, again))
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def multi(tmp_path_factory):
    config = replace(tiny(steps=60, log_every=60), objective=preset("flow_matching"))
    return train(config, tmp_path_factory.mktemp("multi") / "run")


@pytest.mark.parametrize("tangent", ["central", "jvp"])
@pytest.mark.parametrize("optimizer", ["radam", "muon"])
def test_few_steps_then_samples_and_scores(tangent, optimizer, multi, tmp_path):
    base = tiny(steps=6, init=str(multi))
    objective = preset("ucgm_few", tangent=tangent)
    config = replace(base, objective=objective, optimizer=OptimizerConfig(optimizer, 1e-4))
    run = train(config, tmp_path / "run")
    assert all(w.isfinite().all() for w in weights(run, 6).values())
    sample_run(str(run), 20, 2, out_dir=str(tmp_path / "images"), device="cuda")
    assert len(list((tmp_path / "images").rglob("*.png"))) >= 20
    (row,) = benchmark(str(run), [2], 100, device="cuda")["rows"]
    assert row["scores"]["fid"] > 0


@pytest.mark.parametrize("optimizer", NAMES)
def test_the_host_does_not_wait(optimizer, monkeypatch):
    """What the trace says, asked of the card."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    step = step_on_gpu(config_of("ucgm_multi", optimizer))
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_optimizers_are_those_of_the_host(name):
    built = network(), network().cuda()
    for one in built:
        optimizer = build_optimizer(OptimizerConfig(name, 1e-3, weight_decay=0.1), named(one))
        for step in range(4):
            give_gradients(one, step)
            device = next(one.parameters()).device
            optimizer.found_inf = torch.tensor(float(step == 2), device=device)
            optimizer.step()
    for here, there in zip(*(one.parameters() for one in built), strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-4)
