"""Set losses: the published numbers, differences, moments, samplers, processes, resuming."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import job, run_jobs
from tests.training.test_train import same, tiny, weights
from ucgm.data import Digits, from_uint8, to_uint8
from ucgm.data.loader import BatchPlan
from ucgm.evaluation.metrics import Gaussian, frechet_distance, moments_of
from ucgm.nn import DiTConfig
from ucgm.objective import preset
from ucgm.objective.set_losses import FrechetLoss, KernelLoss, drift, k_means, set_loss
from ucgm.objective.sets import Real, SetTerm
from ucgm.runs.config import Config, from_dict, to_dict
from ucgm.runs.folder import encoders_of
from ucgm.runs.layers import layers_of, training_config
from ucgm.sampler import Sampler
from ucgm.training.loop import train
from ucgm.training.sets import SampleLosses

GOLDEN = Path(__file__).parents[1] / "golden"


def features(n, d=4, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


def real(n=60, d=4):
    rows = features(n, d, 9) * 1.5 + 0.3
    found = moments_of(rows)
    return Real(found.mean, found.covariance, rows.float())


@pytest.mark.parametrize("kind", ["queue", "ema"])
def test_fd_loss_is_the_published_one(kind):
    """Four steps of the published code: distances, losses, gradients (arXiv 2604.28190)."""
    golden = load_file(GOLDEN / "fd_loss.safetensors")
    term = SetTerm(queue=40, decay=0.9 if kind == "ema" else None)
    loss = FrechetLoss(term, Real(golden["mu_ref"], golden["sigma_ref"], None))
    loss.begin(golden["init"])
    for step, batch in enumerate(golden["batches"]):
        batch = batch.clone().requires_grad_()
        value = loss(batch)
        (gradient,) = torch.autograd.grad(value, batch)
        assert float(loss.distance) == pytest.approx(float(golden[f"fd_{kind}"][step]), abs=1e-6)
        assert value.item() == pytest.approx(float(golden[f"loss_{kind}"][step]), abs=1e-6)
        torch.testing.assert_close(gradient, golden[f"grad_{kind}"][step], rtol=0, atol=1e-7)


def test_kernel_loss_is_the_published_one():
    golden = load_file(GOLDEN / "irdm_loss.safetensors")
    term = SetTerm(distance="mmd", queue=0)
    loss = KernelLoss(term, golden["pool"])
    assert loss.width == pytest.approx(float(golden["sigma_median"]), abs=1e-6)
    # all 60 rows are centres: the loss is that of the images themselves
    exact = loss.measure(golden["gen"].double())
    assert float(exact) == pytest.approx(float(golden["loss_exact"]), abs=2e-6)
    loss.centres = golden["Z"].double()
    kernel = loss.kernel(loss.centres, loss.centres) + 1e-6 * torch.eye(8)
    loss.shares = torch.linalg.solve(
        kernel, loss.kernel(loss.centres, golden["pool"].double()).mean(1)
    )
    torch.testing.assert_close(loss.shares.float(), golden["alpha"], rtol=0, atol=1e-5)
    assert loss.own == pytest.approx(float(golden["k_rr"]), abs=1e-6)
    batch = golden["gen"].clone().requires_grad_()
    value = loss(batch)
    assert float(loss.distance) == pytest.approx(float(golden["loss"]), abs=1e-6)
    (gradient,) = torch.autograd.grad(value, batch)
    torch.testing.assert_close(gradient, golden["grad_selfnorm"], rtol=0, atol=1e-5)


def test_drift_is_the_published_one():
    """The public code on two sets of five samples and six real rows (arXiv 2602.04770)."""
    golden = load_file(GOLDEN / "drift_loss.safetensors")
    samples = golden["gen"].clone().requires_grad_()
    length, loss = drift(samples, golden["pos"])
    assert loss.item() == pytest.approx(float(golden["loss_noneg"].mean()), rel=1e-5)
    parts = [float(golden[f"loss_{t}_noneg"]) for t in ("0.02", "0.05", "0.2")]
    assert float(length) == pytest.approx(sum(parts), rel=5e-5)  # of cancellation
    (gradient,) = torch.autograd.grad(loss, samples)
    torch.testing.assert_close(gradient, golden["grad_noneg"], rtol=0, atol=1e-5)


def test_samples_drift_to_the_real_images():
    """A Gaussian with a free mean and width; its field takes both to those of the data."""
    data, steps = real(600), 150
    loss = set_loss(SetTerm(distance="drift"), data)
    mean = torch.full((4,), 0.8).double().requires_grad_()
    width = torch.tensor(1.0).double().requires_grad_()
    optimizer = torch.optim.Adam((mean, width), 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    lengths = []
    for step in range(steps):
        optimizer.zero_grad()
        loss(mean + width * features(200, seed=step)).backward()
        optimizer.step()
        schedule.step()
        lengths.append(float(loss.distance))
    torch.testing.assert_close(mean.detach(), data.mean, rtol=0, atol=0.1)
    assert width.item() == pytest.approx(float(data.covariance.diag().mean().sqrt()), rel=0.05)
    assert max(lengths[-5:]) < 0.7 * lengths[0]
    # real rows are taken in turn, and the place among them is in the checkpoint
    assert int(loss.place) == steps * 200 % 600 and "place" in loss.state_dict()
    found = []
    for _ in range(4):
        loss(features(200, seed=1))
        found.append(float(loss.distance))
    assert len(set(found)) == 3 and found[3] == found[0]


def test_a_queue_where_a_batch_does_not_fix_the_moments():
    assert SetTerm().of_batch(1024, 64).queue == SetTerm(queue=0).of_batch(16, 64).queue == 0
    assert SetTerm().of_batch(1023, 64).queue == SetTerm().of_batch(1024, 2048).queue == 50_000
    assert SetTerm(decay=0.9).of_batch(1024, 64).queue == 50_000  # averaged moments start from it
    assert SetTerm(queue=2048).of_batch(1024, 64).queue == 2048
    assert SetTerm().of_batch(60_000, 60_000).queue == 60_000
    assert SetTerm(distance="drift").of_batch(16, 2048).queue == 0


TERMS = [
    SetTerm(queue=0),
    SetTerm(queue=30),
    SetTerm(queue=30, decay=0.7),
    SetTerm(distance="mmd", queue=0),
    SetTerm(distance="mmd", queue=30),
]  # the gradient of drift is that of no value


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_gradients_are_those_of_differences(term):
    loss = set_loss(term, real()).double()
    loss.begin(features(30, seed=3))
    batch = features(12, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(loss.measure, (batch,), eps=1e-6, atol=1e-8, rtol=1e-5)


def test_the_moments_of_the_queue_are_those_of_the_whole_set():
    loss, whole = FrechetLoss(SetTerm(queue=30), real()), features(30, seed=3)
    loss.begin(whole)
    expected = frechet_distance(moments_of(whole.float()), Gaussian(*real()[:2]))
    for step in range(9):  # the same samples again: nothing changes
        loss(whole[step * 10 % 30 :][:10].float())
        assert float(loss.distance) == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(loss.rows, whole.float(), rtol=0, atol=0)
    # others replace the oldest, and the moments are those of what is there
    new = features(14, seed=4).float()
    loss(new)
    now = torch.cat((new, whole[14:].float()))
    assert torch.equal(loss.rows, now) and int(loss.place) == 14
    mean, covariance = moments_of(now).mean, moments_of(now).covariance
    torch.testing.assert_close(loss.state[0, 1:], mean, rtol=0, atol=1e-12)
    inside = loss.state[1:, 1:] - mean.outer(mean)
    torch.testing.assert_close(inside * 30 / 29, covariance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("term", [*TERMS, SetTerm(distance="drift")], ids=str)
def test_a_batch_that_is_not_finite_is_not_remembered(term):
    loss = set_loss(term, real())
    loss.begin(features(30, seed=3))
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    bad = features(12).float()
    bad[3, 2] = torch.nan
    if term.distance == "fd":
        bad[3, 2] = torch.inf
    try:
        value = loss(bad)
        assert not value.isfinite()
    except RuntimeError:  # torch.linalg says so itself
        pytest.fail("a step that is not finite must be skipped, not end the run")
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())


def test_fewer_singular_directions_than_features_have_a_finite_gradient():
    loss = FrechetLoss(SetTerm(queue=0), real(60, 24))
    batch = features(6, 24).float().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(batch), batch)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_k_means_finds_separate_groups():
    groups = torch.cat([features(40, 3, k) * 0.01 + 5 * k for k in range(3)])
    found = k_means(groups, 3, torch.Generator().manual_seed(0))
    assert found.shape == (3, 3) and k_means(groups, 500, torch.Generator()) is groups


# Trainings on the digits.
NETWORK = DiTConfig(size="N/4")
DIGITS = SetTerm(queue=64)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run of two times; do not write into it."""
    objective = preset("meanflow")
    model = replace(NETWORK, **objective.network_inputs)
    config = replace(
        tiny(steps=2), objective=objective, model=model, sampler=Sampler(steps=2, solver="jump")
    )
    return train(config, tmp_path_factory.mktemp("start") / "run")


def post(start, run_dir, *sets, steps=4, **more):
    """A post-training of ``start``."""
    layers = [
        {"objective": {"preset": "fd_post", "sets": [to_dict(s) for s in sets or (DIGITS,)]}},
        {"train": {"init": str(start), "steps": steps, "global_batch": 16, "log_every": 1,
                   "checkpoint_every": 2, "preview_every": 10**6}},
        {"optimizer": {"name": "adamw", "lr": 1e-3, "schedule": "constant"}},
        more,
    ]  # fmt: skip
    return training_config(layers, run_dir)[0]


def test_a_post_training_takes_all_but_its_terms_from_the_run(start, tmp_path):
    config = post(start, tmp_path / "run")
    before = Config().objective
    assert config.objective.two_time and config.objective.destination != before.destination
    assert config.objective.residual_weight == 0 and config.objective.label_dropout == 0
    assert config.sampler.solver == "jump" and config.sampler.steps == 2
    assert config.model.second_time and config.objective.sets == (DIGITS,)
    assert from_dict(Config, to_dict(config)) == config


def test_without_settings_it_is_short_and_slow(start, tmp_path):
    """At the rates of other tunings a model runs past what a set loss asks for."""
    layers = [{"objective": {"preset": "fd_post"}, "train": {"init": str(start)}}]
    config, _ = training_config([*layers, {"sampler": {"steps": 1}}], tmp_path / "run")
    assert config.optimizer.lr == 1e-5 and config.train.global_batch == 1024
    assert config.objective.sets == (SetTerm(),) and config.ema.decay == 0.95


@pytest.mark.parametrize("steps", [1, 4])
def test_it_lowers_the_distance_and_logs_it(start, tmp_path, steps):
    sets = (DIGITS, SetTerm(extractor="random", distance="mmd", queue=64))
    config = post(start, tmp_path / "run", *sets, steps=24, sampler={"steps": steps})
    run = train(config, tmp_path / "run")
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("fd.digits", "mmd.random"):
        values = [line[name] for line in log]
        assert min(values[-4:]) < 0.9 * values[0], (name, values)
    assert encoders_of(run) == [
        {"name": name, "sha256": encoder["sha256"]}
        for name, encoder in zip(("digits", "random"), encoders_of(run), strict=True)
    ]
    # the encoders of the run it comes from are known as well
    again = train(post(run, tmp_path / "again", DIGITS, steps=1), tmp_path / "again")
    assert encoders_of(again) == encoders_of(run)


def test_a_resumed_post_training_is_the_same(start, tmp_path):
    config = post(start, tmp_path / "run")
    run = train(config, tmp_path / "run")
    part = shutil.copytree(run, tmp_path / "part")
    shutil.rmtree(part / "checkpoints/step_0000004")
    train(config, part)
    for name in ("network", "ema", "sets"):
        assert same(weights(part, 4, name), weights(run, 4, name)), name
    assert weights(run, 4, "sets")["losses.0.rows"].shape == (64, 32)


def test_two_processes_post_train_like_one(start, tmp_path):
    sets = (SetTerm(queue=64), SetTerm(distance="mmd", queue=0), SetTerm(distance="drift"))
    alone = post(start, tmp_path / "x", *sets, steps=2, sampler={"steps": 2})
    beside = replace(alone, objective=replace(alone.objective, residual_weight=0.5))
    configs = {"alone": alone, "beside": beside}
    jobs = [job(c, tmp_path / f"{n}{w}", w) for n, c in configs.items() for w in (1, 2)]
    for codes, text in run_jobs(*jobs):
        assert not any(codes), text
    for name in configs:
        one, two = (weights(tmp_path / f"{name}{world}", 2) for world in (1, 2))
        for key, value in one.items():
            torch.testing.assert_close(value, two[key], rtol=0, atol=2e-5)


def test_pixels_are_clipped_as_those_of_a_saved_image(start, tmp_path):
    """A set that is clipped sees what is scored; the published losses see the pixels as made."""
    sets = (SetTerm(queue=0), SetTerm(queue=0, clip=False))
    config = post(start, tmp_path / "run", *sets)
    found = SampleLosses(config, Digits().open(), BatchPlan(16, 1, 0, 1), torch.device("cpu"))
    x = 1.5 * Digits().open().__getitems__(range(16))[0]
    images = from_uint8(to_uint8(x))
    clipped, as_made = found.features(x)
    torch.testing.assert_close(clipped, found.features(images)[0], rtol=0, atol=0.02)
    assert (clipped - as_made).abs().max() > 0.1
    same_inside = found.features(images)
    torch.testing.assert_close(*same_inside, rtol=0, atol=0)


def test_beside_a_residual(start, tmp_path):
    config = post(start, tmp_path / "run", steps=2, objective={"residual_weight": 1.0})
    run = train(config, tmp_path / "run")
    log = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert log["loss"] > 0 and log["fd.digits"] > 0 and any(log["loss_by_time"])


def test_what_cannot_be_is_refused_in_one_line(start, tmp_path, monkeypatch):
    def refused(words, *sets, **more):
        with pytest.raises(ValueError, match=words) as caught:
            train(post(start, tmp_path / "no", *sets, **more), tmp_path / "no")
        assert "\n" not in str(caught.value)

    refused("set sampler.steps so that", sampler={"steps": 5})
    refused("train.accumulation: 1", train={"accumulation": 2})
    refused("holds less than a batch of 16", SetTerm(queue=8))
    refused("is code: if it is yours, say --import os", SetTerm(extractor="os:path"))
    refused("does not exist", SetTerm(reference="none.npz"))
    with monkeypatch.context() as patch:
        patch.setattr("ucgm.training.sets.MANY", 1000)
        refused("reference IMAGES FILE.npz --extractor digits`", DIGITS)
    # the way to name weights is that of a training, not of a benchmark
    refused("with objective.sets weights: PATH", SetTerm(extractor="dinov2"))
    refused("guidance.kind auto has no gradient", guidance={"kind": "auto", "scale": 2.0})
    with pytest.raises(ValueError, match="decay is of moments"):
        SetTerm(distance="mmd", decay=0.5)
    with pytest.raises(ValueError, match="drift is of the batch alone"):
        SetTerm(distance="drift", queue=64)
    with pytest.raises(ValueError, match="residual_weight 0 leaves nothing to learn"):
        preset("flow_matching", residual_weight=0.0)
    with pytest.raises(ValueError, match="fd_post goes on from a trained model"):
        train(replace(tiny(), objective=preset("fd_post")), tmp_path / "no")
    objective = preset("fd_post")
    x = Digits().open().__getitems__(range(4))[0]
    with pytest.raises(ValueError, match="objective.sets need"):
        objective.terms(lambda x, *_: x, objective.draw(x, None))


def test_the_published_rows(start, tmp_path):
    """configs/posttrain over a run: FD-SIM with averaged moments, at one step from pure noise."""
    rates = {"imf": 1e-6, "pmf": 1e-6, "jit": 1e-5, "digits": 1e-5}
    files = sorted((Path(__file__).parents[2] / "configs/posttrain").glob("*.yaml"))
    assert {path.stem for path in files} == set(rates)
    for path in files:
        words = ["--config", str(path), "--train.init", str(start)]
        config = training_config(layers_of(words), tmp_path / "run")[0]
        assert config.optimizer.lr == rates[path.stem] and config.sampler.nfe == 1
        assert config.optimizer.schedule == "cosine" and config.objective.two_time
        if path.stem != "digits":
            sets = config.objective.sets
            assert [s.extractor for s in sets] == ["siglip", "mae", "inception"]
            found = [s.of_batch(1024, 768) for s in sets]
            assert {(s.decay, s.queue, s.weight) for s in found} == {(0.999, 50_000, 1.0)}
            assert not any(s.clip for s in sets)
            assert (config.train.steps, config.train.global_batch) == (125_000, 1024)
            assert config.optimizer.warmup_steps == 6250 and config.ema.decay == 0.9986
