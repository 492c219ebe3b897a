"""What is said before the first step, and what a training says while it goes on."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ucgm.data.loader import BatchPlan
from ucgm.nn import DiTConfig
from ucgm.objective import preset
from ucgm.runs.config import Config
from ucgm.runs.settings import OptimizerConfig, TrainConfig
from ucgm.training import estimate, log
from ucgm.training.loop import train
from ucgm.training.throughput import count_work

SHAPE = (1, 8, 8)
SMALL = Config(
    model=DiTConfig(size="N/2"),
    train=TrainConfig(steps=3, global_batch=8, log_every=3, preview_every=9, checkpoint_every=9),
)


def kept_by_autograd(config, rows):
    """Bytes of the storages that autograd really keeps, parameters left out."""
    network, kept = config.model.build(SHAPE, 10), {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, t, y = torch.zeros(rows, *SHAPE), torch.full((rows,), 0.5), torch.zeros(rows).long()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x, t, y).sum()
    return sum(size for place, size in kept.items() if place not in weights)


def test_memory_is_that_which_autograd_keeps():
    plan = BatchPlan(64, 1, 0, 1)
    work = count_work(SMALL.model, SHAPE, 10, SMALL.objective)
    needed = estimate.needed_memory(SMALL, SHAPE, 10, plan, work)
    assert needed.state == 4 * work.parameters * 5
    assert 64 * needed.row == pytest.approx(kept_by_autograd(SMALL, 64), rel=0.1)
    few = replace(SMALL, objective=preset("ucgm_few"))
    more = estimate.needed_memory(few, SHAPE, 10, plan, work)
    assert more.state - needed.state == 4 * work.parameters  # the teacher


def test_the_accumulation_that_fits_is_said(monkeypatch):
    plan, device = BatchPlan(96, 2, 0, 1), torch.device("cpu")
    free = SimpleNamespace(available=100.0)
    monkeypatch.setattr(estimate.psutil, "virtual_memory", lambda: free)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert "of 0.0 MiB" in estimate.check_memory(estimate.Memory(4.0, 2.0), plan, device)
    # 48 rows of 4 bytes do not fit beside 4; 24 are the most that fit and divide them.
    with pytest.raises(ValueError, match="set train.accumulation 4 for 24 rows at once instead of"):
        estimate.check_memory(estimate.Memory(4.0, 4.0), plan, device)
    # 24 rows in each of 2 passes are a batch of 48.
    with pytest.raises(ValueError, match="free: lower train.global_batch to 48 or less, set train"):
        estimate.check_memory(estimate.Memory(4.0, 4.0), plan, device)
    # Losses of all samples of a step are not had in passes.
    with pytest.raises(ValueError, match="to 24 or less, set model.gradient_checkpointing"):
        alone = BatchPlan(96, 1, 0, 1)
        estimate.check_memory(estimate.Memory(4.0, 4.0), alone, device, in_passes=False)
    for state in (99.0, 101.0):  # not one row fits
        with pytest.raises(ValueError, match="free: choose a smaller model.size$"):
            estimate.check_memory(estimate.Memory(state, 4.0), plan, device)


def test_sizes_are_said_in_the_unit_that_shows_them(monkeypatch):
    free = SimpleNamespace(available=2.0**31)
    monkeypatch.setattr(estimate.psutil, "virtual_memory", lambda: free)
    plan, device = BatchPlan(2**20, 1, 0, 1), torch.device("cpu")
    said = estimate.check_memory(estimate.Memory(45 * 2.0**20, 1.0), plan, device)
    assert said == "memory 46.0 MiB of 2.0 GiB that are free"
    message = "about 4.0 GiB of memory, 14.0 MiB of them for weights.* has 2.0 GiB free"
    with pytest.raises(ValueError, match=message):
        estimate.check_memory(estimate.Memory(14 * 2.0**20, 4096.0), plan, device)


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path):
    config = replace(
        SMALL,
        model=DiTConfig(size="XL/1"),
        train=replace(SMALL.train, global_batch=2**20),
    )
    with pytest.raises(ValueError, match=r"needs about .* GiB .* choose a smaller model.size"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trying_out_changes_nothing():
    network = SMALL.model.build(SHAPE, 10).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    work = count_work(SMALL.model, SHAPE, 10, SMALL.objective)
    plan = BatchPlan(64, 2, 0, 1)
    seconds = estimate.time_of_step(network, SHAPE, plan, work, 1e11)
    assert 1e-4 < seconds < 60
    assert torch.equal(torch.rand(1), expected) and network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.004, "4.0 ms"),
        (0.25, "0.2 s"),
        (42, "42 s"),
        (720, "12 min"),
        (3.5 * 3600, "3.5 h"),
        (2e6, "23 days"),
    ],
)
def test_durations(seconds, words):
    assert estimate.duration(seconds) == words


def test_signs_of_life_and_the_way_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(log, "HEARTBEAT", 0.0)
    run = train(SMALL, tmp_path / "run")
    out = capsys.readouterr().out
    assert "estimate: memory" in out and "to the end" in out
    line = r"step {}/3  loss \d\.\d{{4}}  "
    assert re.search("\n".join(line.format(step) + "\\.{3}" for step in (1, 2)), out)
    assert re.search(line.format(3) + "grad_norm", out)
    assert out.endswith(
        f"saved {run}/checkpoints/step_0000003; next: ucgm sample {run}  or  ucgm benchmark {run}\n"
    )


def test_the_reason_why_a_run_cannot_be_made_longer(tmp_path):
    config = replace(SMALL, optimizer=OptimizerConfig(schedule="cosine"))
    run = train(config, tmp_path / "run")
    longer = replace(config, train=replace(config.train, steps=5))
    message = rf"optimizer.schedule cosine\) follows the number of steps.*--train.init {run}"
    message += ".* or, to begin anew, remove the folder or name another --run-dir$"
    with pytest.raises(ValueError, match=message):
        train(longer, run)
