"""Losses and gradients that are not finite: skipped alike everywhere, counted, explained."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import job, run_jobs
from tests.training.test_train import same, tiny
from ucgm.data import DigitsDataset
from ucgm.data.loader import sample_indices
from ucgm.objective import Objective
from ucgm.runs.settings import EMAConfig
from ucgm.training.loop import train
from ucgm.training.nonfinite import poison_gradients

STEP = 6  # the seventh
# The poisoned sample: row 3 of the seventh batch of 16, and of no other within twelve steps.
SAMPLE = int(sample_indices(1343, 0, torch.tensor([STEP * 16 + 3])))


def config(name="adamw", **train_settings):
    base = tiny(steps=12, checkpoint_every=12, **train_settings)
    ema = EMAConfig(decay=0.9, target_decay=0.5, tracked=(0.1,))
    return replace(base, ema=ema, optimizer=replace(base.optimizer, name=name))


def lines(run):
    return [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]


KINDS = {
    "adamw": (config(), 1),
    "radam": (config("radam"), 1),
    "accumulation": (config(accumulation=2), 1),
    "two": (config(), 2),
    "fsdp2": (config(sharding="fsdp2"), 2),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every kind with a NaN image at step 7, and with that step's update left out."""
    root, jobs = tmp_path_factory.mktemp("guard"), []
    for name, (settings, world) in KINDS.items():
        jobs.append(job(settings, root / f"{name}_poisoned", world, poison=[SAMPLE]))
        jobs.append(job(settings, root / f"{name}_left_out", world, left_out=[STEP]))
    for one, (codes, output) in zip(jobs, run_jobs(*jobs), strict=True):
        assert not any(codes), (one["run_dir"], output)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_image_leaves_out_one_update(runs, kind):
    run, other = runs / f"{kind}_poisoned", runs / f"{kind}_left_out"
    names = ("network", "ema", "target", "ema_std_0.100", "optimizer")
    for name in names:
        one, two = (
            load_file(r / f"checkpoints/step_0000012/{name}.safetensors") for r in (run, other)
        )
        assert same(one, two), name
    ours, theirs = lines(run), lines(other)
    assert [x["skipped"] for x in ours] == [0] * STEP + [1] * (12 - STEP)
    assert [x["loss"] for x in ours if x["step"] != STEP + 1] == [
        x["loss"] for x in theirs if x["step"] != STEP + 1
    ]
    assert "loss" not in ours[STEP] and "grad_norm" not in ours[STEP]
    manifest = json.loads((run / "checkpoints/step_0000012/manifest.json").read_text())
    assert (manifest["skipped"], manifest["skipped_in_a_row"], manifest["ema_updates"]) == (
        1,
        0,
        11,
    )


def poison(monkeypatch, samples):
    original = DigitsDataset.read

    def read(self, indices):
        x, y = original(self, indices)
        x[[samples is None or int(i) in samples for i in indices]] = float("nan")
        return x, y

    monkeypatch.setattr(DigitsDataset, "read", read)


def test_a_mean_over_a_period_is_over_the_steps_that_were_taken(tmp_path, monkeypatch):
    poison(monkeypatch, {SAMPLE})
    run = train(config(log_every=12), tmp_path / "run")
    each = train(config(), tmp_path / "each")
    finite = [x["loss"] for x in lines(each) if "loss" in x]
    assert len(finite) == 11
    assert lines(run)[0]["loss"] == pytest.approx(sum(finite) / 11, rel=1e-5)


def test_a_run_that_meets_only_bad_batches_stops_and_names_them(tmp_path, monkeypatch):
    poison(monkeypatch, None)
    with pytest.raises(RuntimeError, match=r"3 steps in a row.*step 3\. 16 samples.*repair"):
        train(config(max_skipped=3), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "bad_batch.json").read_text())
    expected = sample_indices(1343, 0, 2 * 16 + torch.arange(16)).tolist()
    assert record["step"] == 3 and [row["sample"] for row in record["rows"]] == expected
    assert all(0 < row["time"] < 1 and not row["finite"] for row in record["rows"])


def test_the_batch_that_is_named_is_the_one_that_was_drawn(tmp_path, monkeypatch):
    """One bad sample among others, in a run that may skip no step."""
    poison(monkeypatch, {SAMPLE})
    with pytest.raises(RuntimeError, match=rf"step 7\. 1 samples .*\({SAMPLE} at t = 0\.\d+;"):
        train(config(max_skipped=1), tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "bad_batch.json").read_text())["rows"]
    assert [i for i, row in enumerate(rows) if not row["finite"]] == [3]


def test_a_diverged_run_is_told_about_its_rate(tmp_path):
    wild = config(max_skipped=2)
    wild = replace(wild, optimizer=replace(wild.optimizer, lr=1e6, warmup_steps=0))
    with pytest.raises(RuntimeError, match="samples are finite .* lower optimizer.lr"):
        train(wild, tmp_path / "run")


def test_a_loss_that_is_not_finite_marks_every_gradient():
    x = torch.ones(3, requires_grad=True)
    poison_gradients(x.sum()).backward()
    assert torch.equal(x.grad, torch.ones(3))
    for bad in (float("inf"), float("nan")):
        x.grad = None
        poison_gradients((0.0 * x).sum() + bad).backward()  # the gradient itself would be 0
        assert x.grad.isnan().all()


def test_a_loss_that_is_not_finite_skips_the_step_though_its_gradient_is(tmp_path, monkeypatch):
    original, calls = Objective.terms, []

    def terms(self, *arguments, **options):
        found = original(self, *arguments, **options)
        calls.extend([0] * isinstance(arguments[0], torch.nn.Module))  # not the count of passes
        return found._replace(loss=found.loss + (math.inf if len(calls) == 4 else 0.0))

    monkeypatch.setattr(Objective, "terms", terms)
    run = train(config(), tmp_path / "run")
    assert [x["skipped"] for x in lines(run)] == [0] * 3 + [1] * 9
