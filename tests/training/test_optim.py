"""Optimizers against the arithmetic of their papers, and schedules against their formulas."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.forked import job, run_jobs
from tests.training.test_train import tiny
from ucgm.nn import DiTConfig, EDM2Config
from ucgm.runs.saving import optimizer_state, restore_optimizer
from ucgm.runs.settings import OptimizerConfig
from ucgm.training.optim import build_optimizer

NAMES = ("adamw", "radam", "lion", "muon")


def network(seed=0):
    torch.manual_seed(seed)
    built = DiTConfig(size="N/4").build((1, 8, 8), 10)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return built


def named(built):
    return {p: name for name, p in built.named_parameters()}


def give_gradients(built, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in built.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)


def copies(built):
    return {name: p.detach().clone() for name, p in built.named_parameters()}


def test_lion_is_its_arithmetic():
    built = network()
    optimizer = build_optimizer(
        OptimizerConfig("lion", 0.01, (0.9, 0.99), weight_decay=0.5), named(built)
    )
    weights = copies(built)
    momenta = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step in range(3):
        give_gradients(built, step)
        optimizer.step()
        for name, parameter in built.named_parameters():
            gradient, m = parameter.grad, momenta[name]
            direction = torch.sign(0.9 * m + 0.1 * gradient)
            weights[name] = weights[name] - 0.01 * (direction + 0.5 * weights[name])
            momenta[name] = 0.99 * m + 0.01 * gradient
            torch.testing.assert_close(parameter, weights[name], rtol=0, atol=1e-6)


def test_muon_orthogonalises_the_matrices_of_blocks_and_leaves_the_rest_to_adamw():
    built, other = network(), network()
    settings = OptimizerConfig("muon", 0.02, (0.9, 0.95), weight_decay=0.1)
    optimizer = build_optimizer(settings, named(built))
    rest = build_optimizer(replace(settings, name="adamw"), named(other))
    before = copies(built)
    for one, step in ((built, optimizer.step), (other, rest.step)):
        give_gradients(one, 0)
        step()
    seen = 0
    reference = copies(other)
    for name, parameter in built.named_parameters():
        if parameter.ndim == 2 and name.startswith("blocks."):
            rows, columns = parameter.shape
            moved = before[name] * (1 - 0.02 * 0.1) - parameter.detach()
            orthogonal = moved / (0.02 * 0.2 * math.sqrt(max(rows, columns)))
            # Five iterations bring the singular values near 1, but for those that are almost 0.
            values = torch.linalg.svdvals(orthogonal)
            assert 0.5 < values.quantile(0.1) and values.max() < 1.5, name
            left, _, right = torch.linalg.svd(parameter.grad, full_matrices=False)
            exact = left @ right
            cosine = torch.nn.functional.cosine_similarity(orthogonal.flatten(), exact.flatten(), 0)
            assert cosine > 0.95, name
            seen += 1
        else:
            assert torch.equal(parameter, reference[name]), name
    assert seen == 5 * len(built.blocks)  # qkv, projection, two of the MLP, modulation


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_a_restart_and_three_more_equal_six(name, tmp_path):
    settings = OptimizerConfig(name, 1e-3, weight_decay=0.01)
    straight = network()
    optimizer = build_optimizer(settings, named(straight))
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / (step + 1)
        give_gradients(straight, step)
        optimizer.step()
        if step == 2:
            kept = {k: v.clone() for k, v in straight.state_dict().items()}
            save_file(optimizer_state(optimizer, named(straight)), tmp_path / "o.safetensors")
    again = network(seed=1)
    again.load_state_dict(kept)
    optimizer = build_optimizer(settings, named(again))
    restore_optimizer(optimizer, named(again), tmp_path / "o.safetensors")
    for step in range(3, 6):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / (step + 1)
        give_gradients(again, step)
        optimizer.step()
    for (key, one), two in zip(straight.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), key


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_of_every_group_is_obeyed(name):
    built = network()
    optimizer = build_optimizer(OptimizerConfig(name), named(built))
    before = copies(built)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    give_gradients(built, 0)
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in built.named_parameters())


def test_muon_is_refused_where_it_cannot_work():
    conv = EDM2Config(model_channels=64, channel_mult=(1,), num_blocks=1).build((4, 8, 8), 3)
    with pytest.raises(ValueError, match="this network has none: choose adamw"):
        build_optimizer(OptimizerConfig("muon"), named(conv))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.5, 0.0)], ids=str)
def test_radam_is_that_of_torch(betas):
    """Both its branches: the first steps have no second moment, with beta_2 = 0 none ever has."""
    ours, theirs = network(), network()
    settings = OptimizerConfig("radam", 1e-2, betas, weight_decay=0.1)
    one = build_optimizer(settings, named(ours))
    two = torch.optim.RAdam(
        theirs.parameters(), 1e-2, betas, weight_decay=0.1, decoupled_weight_decay=True
    )
    for step in range(12):
        for built, optimizer in ((ours, one), (theirs, two)):
            give_gradients(built, step)
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_with_infinities_leaves_every_bit(name):
    built = network()
    optimizer = build_optimizer(OptimizerConfig(name, 1e-2, weight_decay=0.1), named(built))
    for step in range(2):
        give_gradients(built, step)
        optimizer.step()
    before, kept = copies(built), optimizer_state(optimizer, named(built))
    kept = {key: value.clone() for key, value in kept.items()}
    for parameter in built.parameters():
        parameter.grad.fill_(torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in built.named_parameters())
    state = optimizer_state(optimizer, named(built))
    assert state.keys() == kept.keys() and all(torch.equal(state[k], kept[k]) for k in state)
    optimizer.found_inf = torch.zeros(())
    give_gradients(built, 3)
    optimizer.step()
    assert not any(torch.equal(p, before[n]) for n, p in built.named_parameters())


@pytest.mark.parametrize(
    "settings, step, factor",
    [
        ({}, 0, 1.0),
        ({}, 999, 1.0),
        ({"warmup_steps": 10}, 0, 0.1),
        ({"warmup_steps": 10}, 8, 0.9),
        ({"warmup_steps": 10}, 10, 1.0),
        ({"schedule": "cosine", "warmup_steps": 100}, 50, 0.51),
        ({"schedule": "cosine", "warmup_steps": 100}, 100, 1.0),
        ({"schedule": "cosine", "warmup_steps": 100}, 550, 0.5),
        ({"schedule": "cosine"}, 999, 0.5 * (1 + math.cos(0.999 * math.pi))),
        ({"schedule": "inverse_sqrt", "reference_steps": 100}, 50, 1.0),
        ({"schedule": "inverse_sqrt", "reference_steps": 100}, 100, 1.0),
        ({"schedule": "inverse_sqrt", "reference_steps": 100}, 400, 0.5),
        ({"schedule": "inverse_sqrt", "reference_steps": 100}, 900, 1 / 3),
        ({"schedule": "inverse_sqrt", "reference_steps": 1, "warmup_steps": 8}, 3, 0.5 / 3**0.5),
    ],
)
def test_schedules(settings, step, factor):
    config = OptimizerConfig(lr=3e-4, **settings)
    assert config.lr_at(step, 1000) == pytest.approx(3e-4 * factor, rel=1e-12)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "sgd"}, "optimizer.name must be one of adamw, radam, lion, muon, got 'sgd'"),
        ({"schedule": "linear"}, "optimizer.schedule must be one of constant, cosine"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"reference_steps": 0}, "reference_steps must be at least 1"),
    ],
)
def test_settings_without_a_meaning(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)


@pytest.mark.slow
def test_sharded_weights(tmp_path):
    """Optimizers move shards like whole weights; Muon gathers its matrices."""

    def settings(name, sharding):
        base = tiny(steps=4, checkpoint_every=4, sharding=sharding)
        return replace(base, optimizer=OptimizerConfig(name, 1e-3, weight_decay=0.1))

    jobs, names = [], ("lion", "muon")
    for name in names:
        jobs.append(job(settings(name, "none"), tmp_path / name / "whole"))
        jobs.append(job(settings(name, "fsdp2"), tmp_path / name / "parts", world=2))
    for codes, output in run_jobs(*jobs):
        assert not any(codes), output
    for name in names:
        for kind in ("network", "optimizer"):
            states = [
                load_file(tmp_path / name / n / f"checkpoints/step_0000004/{kind}.safetensors")
                for n in ("whole", "parts")
            ]
            assert states[0].keys() == states[1].keys()
            # The sign of a gradient near zero is decided by rounding, and Muon multiplies in
            # bfloat16: few weights may differ.
            apart = torch.cat([(states[0][k] - states[1][k]).abs().flatten() for k in states[0]])
            assert (apart > (2e-4 if name == "muon" else 1e-5)).float().mean() < 0.01
