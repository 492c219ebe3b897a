"""A training step on a GPU, by traces: where the host waits, what is computed in which dtype."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.fake_cuda import CUDA, FakeCUDA
from tests.training.test_train import tiny
from ucgm.data.loader import BatchPlan
from ucgm.nn import DiTConfig
from ucgm.objective import LogVariance, preset
from ucgm.runs.settings import EMAConfig, OptimizerConfig
from ucgm.runtime.sharding import Sharding
from ucgm.training.build import TrainState
from ucgm.training.ema import EMA, frozen_copy
from ucgm.training.log import MetricsLogger
from ucgm.training.loop import _step
from ucgm.training.networks import Networks
from ucgm.training.nonfinite import NonFiniteSkipper
from ucgm.training.optim import build_optimizer

REPO = Path(__file__).parents[2]
OPTIMIZERS = ("adamw", "radam", "lion", "muon")


def step_on_gpu(config, shape=(1, 8, 8), rows=8):
    """A function that takes one step of ``config`` inside ``FakeCUDA``."""
    objective = config.objective
    with torch.device("cuda"):
        network = config.model.build(shape, 10).train()
        log_variance = LogVariance(two_time=objective.two_time) if objective.log_variance else None
    ema, target = EMA(network, 0.9), None
    if objective.needs_target and config.ema.target_decay is not None:
        target = EMA(network, 0.5)
    tracked = {std: EMA(network, 0.0, std=std) for std in config.ema.tracked}
    teachers = [frozen_copy(network) for _ in range(objective.teachers)]
    networks = Networks(network, ema, target, tracked, teachers, log_variance)
    trained = networks.trained()
    accelerator = SimpleNamespace(device=CUDA, is_main_process=True, num_processes=1)
    state = TrainState(
        accelerator=accelerator,
        config=config,
        run_dir=None,
        dataset=SimpleNamespace(num_classes=10, shape=shape),
        plan=BatchPlan(rows, 1, 0, 1),
        sharding=Sharding(1, CUDA, False),
        networks=networks,
        wrapped=network,
        wrapped_variance=log_variance,
        trained=trained,
        optimizer=build_optimizer(config.optimizer, trained),
        skipper=NonFiniteSkipper(CUDA),
        log=MetricsLogger(None, accelerator, config.train, None, 1.0),
        memory="",
        seconds=0.0,
    )

    def stream():
        while True:
            x = torch.zeros(rows, *shape).pin_memory().to("cuda", non_blocking=True)
            yield x, torch.zeros(rows, dtype=torch.int64).to("cuda", non_blocking=True)

    source = stream()
    return lambda: _step(state, source)


def traced(config, monkeypatch, precision="bf16", warm=1, **more):
    """What one step does, after ``warm`` others, which build state and tables."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    with FakeCUDA() as mode:
        step = step_on_gpu(config, **more)
        for _ in range(warm):
            step()
        mode.trace.__init__()
        step()
    return mode.trace


def config_of(name, optimizer="adamw", **settings):
    objective, base = preset(name, **settings), tiny()
    return replace(
        base,
        objective=objective,
        model=replace(base.model, **objective.network_inputs),
        optimizer=OptimizerConfig(optimizer, weight_decay=0.1),
        ema=EMAConfig(decay=0.9, target_decay=0.5, tracked=(0.1,)),
        train=replace(base.train, grad_clip=1.0),
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_host_waits_for_no_optimizer(optimizer, monkeypatch):
    trace = traced(config_of("ucgm_multi", optimizer), monkeypatch)
    assert not trace.waits and not trace.float64
    assert sum(trace.calls.values()) > 500


# Every kind of pass and of term; all presets were tried, and none but ot_cfm waits.
KINDS = ("multi_step", "ucgm_few", "few_step", "imf", "shortcut", "decoupled_meanflow", "twinflow",
         "terminal_velocity", "edm2")  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_host_waits_for_no_kind_of_objective(name, monkeypatch):
    trace = traced(config_of(name), monkeypatch, warm=0)
    assert not trace.waits and not trace.float64
    assert sum(trace.calls.values()) > 500


def test_optimal_transport_is_solved_on_the_host(monkeypatch):
    """It needs the numbers: two copies to the host, and the order back."""
    trace = traced(config_of("ot_cfm"), monkeypatch, warm=0)
    assert sum(trace.waits.values()) == 3 and not trace.float64


def test_the_trace_sees_what_a_host_waits_for():
    with FakeCUDA() as mode:
        x, mask = torch.zeros(3, device="cuda"), torch.tensor([True, False, True])
        on_device = mask.to("cuda", non_blocking=True)
        assert not mode.trace.waits
        for wait in (
            lambda: x.sum().item(),
            lambda: bool(on_device.any()),
            lambda: x.cpu(),
            lambda: x[on_device],
            lambda: x[torch.tensor([0, 1])],
            lambda: torch.tensor([1.0], device="cuda"),
            lambda: mask.to("cuda"),
            lambda: on_device.nonzero(),
        ):
            mode.trace.waits.clear()
            wait()
            assert sum(mode.trace.waits.values()) == 1
        (x.double() + 1).float()
        assert mode.trace.float64


def xl(family, depth, **more):
    return DiTConfig(size="XL/2", family=family, depth=depth, **more)


def forward_bytes(family, depth):
    """Elementwise bytes of a forward pass of 64 latents in bf16, of DiT-XL/2 but for its depth."""
    with FakeCUDA() as mode, torch.device("cuda"), torch.no_grad():
        network = xl(family, depth).build((4, 32, 32), 1000)
        inputs = torch.empty(64, 4, 32, 32), torch.empty(64), torch.zeros(64, dtype=torch.int64)
        mode.trace.__init__()
        with torch.autocast("cuda", torch.bfloat16):
            network(*inputs)
    return sum(mode.trace.bytes.values())


# 55.5, 92.9 and 84 GB while the tokens were float32; in float32 products alone are 25 ms of it.
@pytest.mark.parametrize("family, most", [("dit", 27.5e9), ("tit", 44.5e9), ("lightningdit", 44e9)])
def test_bytes_that_an_eager_forward_moves(family, most):
    """Every block moves the same, so two small networks say what one of 28 blocks does."""
    two, four = (forward_bytes(family, depth) for depth in (2, 4))
    assert 0.8 * most < two + 13 * (four - two) < most


@pytest.mark.parametrize("name", ["flow_matching", "meanflow", "ucgm_few"])
def test_products_of_a_step_are_bf16(name, monkeypatch):
    """All but the embeddings of times, the modulation of a row and finite differences."""
    config = config_of(name)
    config = replace(config, model=xl("dit", 2, **config.objective.network_inputs))
    trace = traced(config, monkeypatch, warm=0, shape=(4, 32, 32))
    half = trace.flops[torch.bfloat16, False]
    outside = sum(n for (_, difference), n in trace.flops.items() if not difference)
    assert half > 0.99 * outside
    assert not trace.flops[torch.bfloat16, True]
    assert bool(trace.flops[torch.float32, True]) == (name == "ucgm_few")


def test_the_check_for_a_gpu_runs_dry(tmp_path):
    """Its steps, tiny and on the CPU: what it builds by hand changes with the training."""
    words = ["bash", "scripts/gpu/check.sh", "--dry", "--sections", "eager"]
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "check.json").read_text())["errors"] == {}
