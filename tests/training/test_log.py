"""The log of a training: means, the loss over the times, rates, the banner."""

import contextlib
import json
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from tests.data.test_loader import make_set
from tests.forked import job, run_jobs
from tests.training.test_train import tiny
from ucgm.data import Latents
from ucgm.data.loader import BatchPlan
from ucgm.nn import DiTConfig
from ucgm.objective import preset
from ucgm.runs.settings import TrainConfig
from ucgm.training.build import build_train_state
from ucgm.training.ema import EMA
from ucgm.training.log import MetricsLogger, half_life
from ucgm.training.loop import train
from ucgm.training.throughput import Work, count_work, measure_peak, peak_memory

CPU = torch.device("cpu")


def logger(folder, flops=1e6, peak=1e9):
    train = TrainConfig(steps=10, global_batch=8)
    accelerator = Accelerator(cpu=True)
    return MetricsLogger(folder / "metrics.jsonl", accelerator, train, Work({}, flops, 0), peak)


def lines(folder):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in text]


def test_means_leave_out_what_is_not_finite(tmp_path):
    log = logger(tmp_path)
    stream = log.waiting(iter(range(9)))
    for value in (1.0, math.nan, 4.0, math.inf):
        next(stream)
        log.add_step(loss=torch.tensor(value), grad_norm=torch.tensor(math.nan))
    log.write(4, lr=0.1, skipped=2, ema_half_life=None, memory_gib=1.0)
    next(stream)
    log.add_step(loss=torch.tensor(3.0))
    log.write(5, lr=0.1, skipped=2)
    one, two = lines(tmp_path)
    assert one["loss"] == 2.5 and two["loss"] == 3.0
    assert one["skipped"] == 2 and one["memory_gib"] == 1.0
    assert "grad_norm" not in one and "ema_half_life" not in one


def test_loss_over_the_times(tmp_path):
    """Each row in its tenth, both ends included, over all micro-batches; empty ones are null."""
    log = logger(tmp_path)
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(3, 40, generator=generator) * 0.7
    t[0, :2] = torch.tensor([0.0, 1.0])
    losses = torch.rand(3, 40, generator=generator)
    losses[1, 5] = math.nan
    next(log.waiting(iter([0])))
    log.add_step()
    for i in range(3):
        log.add_rows(t[i], losses[i])
    log.write(1, lr=0.1, skipped=0)
    expected = []
    for b in range(10):
        low, high = b / 10, (b + 1) / 10 if b < 9 else 1.01
        inside = losses[(t >= low) & (t < high) & losses.isfinite()]
        expected.append(inside.mean().item() if len(inside) else None)
    found = lines(tmp_path)[0]["loss_by_time"]
    assert [v is None for v in found] == [v is None for v in expected] and None in found
    torch.testing.assert_close(
        [v for v in found if v is not None], [v for v in expected if v is not None]
    )


def test_rates_and_waiting(tmp_path, monkeypatch):
    """Time between a line and the next batch belongs to no step."""
    now = [100.0]
    monkeypatch.setattr("ucgm.training.log.time.perf_counter", lambda: now[0])

    def passes(seconds, value=None):
        now[0] += seconds
        return value

    log = logger(tmp_path, flops=5e5, peak=1e6)
    stream = log.waiting(passes(0.06, i) for i in range(99))
    for _ in range(2):
        passes(7.0)  # a preview
        for _ in range(3):
            next(stream)
            passes(0.02)
            log.add_step(loss=torch.tensor(1.0))
        log.write(3, lr=0.1, skipped=0)
    for line in lines(tmp_path):
        assert line["images_per_second"] == 100  # 3 steps of 8 images in 0.24 seconds
        assert line["data_wait"] == 0.75
        assert line["tflops"] == pytest.approx(100 * 5e-7) and line["of_peak"] == 50


def test_half_life():
    assert half_life(0.5) == pytest.approx(1.0)
    assert half_life(1.0) == 0.0 and half_life(0.0) is None
    network = torch.nn.Linear(1, 1)
    average = EMA(network, 0.9999, warmup=False)
    assert half_life(float(average.weight())) == pytest.approx(6931, rel=1e-3)
    average = EMA(network, 0.0, std=0.1)
    average.updates = 100_000
    # (k / n)^(gamma + 1) = 1/2 with gamma = 6.94 says 8,359; the local rate is close.
    assert half_life(float(average.weight())) == pytest.approx(8359, rel=0.06)


def test_work_is_that_of_the_passes():
    model, shape = DiTConfig(size="S/2", family="dit"), (4, 32, 32)
    plain = count_work(model, shape, 1000, preset("flow_matching"))
    assert plain.flops == pytest.approx(3 * 2 * 6.06e9, rel=0.01)  # DiT, table 4: 6.06 Gflops
    few = count_work(model, shape, 1000, preset("ucgm_few"))
    assert few.flops / plain.flops == pytest.approx((3 + 2.9) / 3, rel=0.01)
    assert "1 forward and backward, 2.9 forward without gradient, " in few.describe()
    flow_map = count_work(model, shape, 1000, preset("scm"))
    assert flow_map.flops / plain.flops == pytest.approx((3 + 2) / 3, rel=0.01)


def test_peak_and_memory_are_measured():
    for dtype in (torch.float32, torch.bfloat16):
        assert 1e9 < measure_peak(CPU, dtype) < 1e15
    before = peak_memory(CPU)
    kept = torch.ones(2**28)  # 1 GiB
    assert 0.05 < before < peak_memory(CPU) < before + 1.5
    del kept


def test_every_number_of_a_line(tmp_path):
    run = train(tiny(grad_clip=1.0), tmp_path / "run")
    keys = (
        "step loss grad_norm loss_by_time lr ema_half_life memory_gib skipped "
        "images_per_second tflops of_peak data_wait"
    )
    for line in lines(run):
        assert list(line) == keys.split()
        assert 0.0 <= line["data_wait"] < 1.0 < line["images_per_second"]
        by_time = [v for v in line["loss_by_time"] if v is not None]
        assert len(line["loss_by_time"]) == 10 and all(v >= 0 for v in by_time)


def test_the_banner_says_what_is_about_to_happen(tmp_path):
    config = tiny(grad_clip=0.5, accumulation=2)
    data = Latents(str(make_set(tmp_path / "set")))
    config = replace(config, model=DiTConfig(size="N/2"), data=data)
    with contextlib.ExitStack() as held:
        state = build_train_state(config, tmp_path / "run", held)
    state.log.peak = 2e12
    text = replace(state, plan=BatchPlan(16, 2, 0, 4), step=3).describe()
    data = state.dataset
    parameters = sum(p.numel() for p in state.networks.online.parameters())
    for words in (
        "step 3 of 6",
        "batch 16 (4 processes x 2 passes x 2 rows) on cpu in float32",
        f"network DiT with {parameters:,} parameters, objective ucgm_multi, path Linear()",
        "per image: 1 forward and backward, 0.78 forward without gradient, ",
        "% of peak: of 2 TFLOP/s, which a large matrix product reached here",
        data.describe(),
        data.codec.describe(),
        "sampled weights: average of decay 0.9; the objective's target: decay 0.5",
        "optimizer: adamw, learning rate 0.001 after 2 steps of warm-up, then a cosine to 0, "
        "gradients clipped to norm 0.5",
    ):
        assert words in text, words


@pytest.mark.slow
def test_two_processes_log_what_one_does(tmp_path):
    config = tiny(steps=3, checkpoint_every=3)
    results = run_jobs(job(config, tmp_path / "one"), job(config, tmp_path / "two", world=2))
    assert [codes for codes, _ in results] == [[0], [0, 0]], results
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert list(one) == list(two)
        for key in ("loss", "loss_by_time"):
            numbers = [
                [-1.0 if v is None else v for v in (x[key] if key == "loss_by_time" else [x[key]])]
                for x in (one, two)
            ]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
