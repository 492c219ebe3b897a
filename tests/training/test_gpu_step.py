"""A training step on a GPU, by traces: where the host waits, what is computed in which dtype."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.fake_cuda import CUDA, FakeCUDA
from tests.training.test_train import tiny
from ucgm.data.loader import BatchPlan
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
