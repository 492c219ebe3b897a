"""Averages: closed forms of their profiles, snapshots of a real training, reconstruction."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.training.test_train import same, tiny
from ucgm.cli import commands as cli
from ucgm.runs import checkpoint
from ucgm.runs.averages import coefficients, find_snapshots, inner_products
from ucgm.runs.settings import EMAConfig, OptimizerConfig, power_exponent, stem_of
from ucgm.runtime.files import sha256
from ucgm.training.ema import EMA
from ucgm.training.loop import train

LENGTHS = (0.05, 0.1)
BETWEEN = (0.03, 0.075, 0.15, 0.2)  # tracked only to be compared with


class Counter(nn.Module):
    """One-hot weights: after update k the k-th is 1, so an average shows its own profile."""

    def __init__(self, updates):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(updates))

    def set(self, update):
        self.weight.data.zero_()[update] = 1.0


def profile(updates, **rule):
    """(updates,) share of the weights of each update in an average."""
    network = Counter(updates)
    average = EMA(network, **({"decay": 0.0} | rule))
    for k in range(updates):
        network.set(k)
        average.update()
    assert average.updates == updates
    return average.network.weight.double()


@pytest.mark.parametrize("std", [0.03, 0.05, 0.1, 0.2, 0.28])
def test_power_profile_and_its_length(std):
    n = 400
    found, exponent = profile(n, std=std), power_exponent(std)
    k = torch.arange(1, n + 1, dtype=torch.float64)
    expected = ((k / n) ** (exponent + 1)).diff(prepend=torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    position = (k - 0.5) / n
    mean = (found * position).sum()
    length = (found * (position - mean) ** 2).sum().sqrt()
    assert float(length) == pytest.approx(std, rel=1e-3)
    assert std == pytest.approx(
        math.sqrt(exponent + 1) / ((exponent + 2) * math.sqrt(exponent + 3)), rel=1e-9
    )


def test_constant_and_warm_up():
    found = profile(5, decay=0.5, warmup=False)
    torch.testing.assert_close(found, 0.5 ** torch.arange(5.0, 0.0, -1.0).double())
    average = EMA(nn.Linear(1, 1), 0.9)
    for n, decay in ((0, 0.1), (1, 2 / 11), (90, 0.9), (1000, 0.9)):
        average.updates = n
        assert 1.0 - float(average.weight()) == pytest.approx(decay, abs=1e-7)


def test_an_average_is_float32_frozen_and_follows_buffers():
    network = nn.BatchNorm1d(3).to(torch.bfloat16)
    average = EMA(network, 0.9, std=0.1)
    network.running_mean.fill_(5)
    network.weight.data.fill_(3)
    average.update()
    assert average.network.weight.dtype == torch.float32 and not average.network.training
    assert not any(p.requires_grad for p in average.network.parameters())
    assert torch.equal(average.network.running_mean, torch.full((3,), 5.0))
    assert torch.equal(average.network.weight, torch.full((3,), 3.0))  # the first update takes all


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(decay=1.5), "ema.decay"),
        (dict(std=0.3), r"in \[0.001, 0.28\], got 0.3"),
        (dict(tracked=(0.05, 0.0)), "got 0.0"),
        (dict(tracked=(0.05, 0.0501)), "third digit"),
        (dict(snapshot_every=0), "at least 1"),
    ],
)
def test_settings_without_a_meaning(settings, message):
    with pytest.raises(ValueError, match=message):
        EMAConfig(**settings)


def test_inner_products_are_integrals():
    rows = np.array([(power_exponent(0.05), 300.0), (power_exponent(0.2), 1000.0)])
    u = (np.arange(200_000) + 0.5) / 200
    p = [(g + 1) / n * np.where(u < n, u / n, 0.0) ** g for g, n in rows]
    expected = [[(a * b).sum() / 200 for b in p] for a in p]
    np.testing.assert_allclose(inner_products(rows, rows), expected, rtol=1e-5)


def test_coefficients_of_a_snapshot_itself_and_of_a_constant():
    rows = np.array([(power_exponent(s), n) for n in (500.0, 750.0, 1000.0) for s in LENGTHS])
    shares, error = coefficients(rows, (power_exponent(0.1), 1000.0))
    np.testing.assert_allclose(shares, [0, 0, 0, 0, 0, 1], atol=1e-6)
    assert error < 1e-6
    shares, error = coefficients(rows, (power_exponent(0.2), 1000.0))
    assert shares.sum() == pytest.approx(1.0, abs=1e-9) and 0.05 < error < 0.9
    million = np.array([(power_exponent(s), n * 1e4) for n in range(1, 101) for s in LENGTHS])
    shares, error = coefficients(million, (power_exponent(0.15), 1e6))
    assert shares.sum() == pytest.approx(1.0, abs=1e-9) and error < 2e-3


def config(lengths=LENGTHS, **train_settings):
    settings = dict(steps=300, log_every=100, preview_every=1000, checkpoint_every=150)
    base = tiny(**(settings | train_settings))
    ema = EMAConfig(decay=0.99, tracked=lengths, snapshot_every=15)
    # A constant rate, so that the averages are still apart at the end.
    return replace(base, ema=ema, optimizer=OptimizerConfig(lr=3e-3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """300 steps of a real training, with the lengths that snapshots are made of and others."""
    return train(config((*LENGTHS, *BETWEEN)), tmp_path_factory.mktemp("ema") / "run")


@pytest.fixture
def only_two(trained, tmp_path):
    """The same run, as if only two lengths had been tracked."""
    run = shutil.copytree(trained, tmp_path / "run")
    for std in BETWEEN:
        for path in (run / "ema").glob(f"*_{stem_of(std)}.safetensors"):
            path.unlink()
    return run


def weights(path):
    return torch.cat([v.flatten().double() for _, v in sorted(load_file(path).items())])


def test_lengths_that_were_not_tracked(trained, only_two, capsys):
    """Reconstructed and directly tracked averages of a real trajectory agree to 1e-3."""
    newest = trained / "checkpoints" / "step_0000300"
    cli.main(["ema", str(only_two), "--std", *map(str, BETWEEN)])
    tracked = [weights(newest / f"ema_{stem_of(std)}.safetensors") for std in LENGTHS]
    for std in BETWEEN:
        direct = weights(newest / f"ema_{stem_of(std)}.safetensors")
        made = weights(only_two / "ema" / f"{stem_of(std)}.safetensors")
        error, nearest = ((made - direct).norm(), min((x - direct).norm() for x in tracked))
        assert error < 1e-3 * direct.norm()
        assert error < 0.1 * nearest, "no better than a tracked average of another length"
    assert "profile error" in capsys.readouterr().out


def test_an_earlier_step_and_the_tracked_lengths_themselves(trained, only_two):
    cli.main(["ema", str(only_two), "--std", "0.05", "0.1", "--step", "150"])
    for std in LENGTHS:
        direct = weights(trained / "ema" / f"step_0000150_{stem_of(std)}.safetensors")
        made = weights(only_two / "ema" / f"{stem_of(std)}_step_0000150.safetensors")
        torch.testing.assert_close(made, direct, rtol=0, atol=1e-5)


def test_a_run_is_sampled_with_it(only_two):
    cli.main(["ema", str(only_two), "--std", "0.075"])
    run = checkpoint.load_run(only_two, weights="std_0.075")
    assert (run.step, run.weights) == (300, "std_0.075")
    assert run.digest == sha256(only_two / "ema" / "std_0.075.safetensors")
    assert not same(run.network.state_dict(), checkpoint.load_run(only_two).network.state_dict())
    cli.main(["sample", str(only_two), "--num-images", "2", "--weights", "std_0.075"])
    assert len(list(only_two.glob("samples/*std_0.075*/images/*.png"))) == 2
    with pytest.raises(ValueError, match="no weights 'std_0.2'; there are .*ema.*std_0.075"):
        checkpoint.load_run(only_two, weights="std_0.2")
    with pytest.raises(ValueError, match="no weights"):
        checkpoint.load_run(only_two, weights="../teacher")
    with pytest.raises(ValueError, match="are of step 300"):
        checkpoint.load_run(only_two, step=150, weights="std_0.075")
    (only_two / "ema" / "std_0.075.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="make an average again"):
        checkpoint.load_run(only_two, weights="std_0.075")


def test_a_resumed_run_leaves_the_same_snapshots(only_two, tmp_path):
    files = {p.name: p.read_bytes() for p in (only_two / "ema").iterdir()}
    run = shutil.copytree(only_two, tmp_path / "again")
    shutil.rmtree(run / "checkpoints" / "step_0000300")
    for path in (run / "ema").glob("step_00002*"):
        path.unlink()
    (run / "config.yaml").unlink()
    from ucgm.runs.config import write_config

    write_config(config(), run / "config.yaml")
    train(config(), run)
    assert {p.name: p.read_bytes() for p in (run / "ema").iterdir()} == files


def test_what_cannot_be_made(only_two, tmp_path, capsys):
    def fails(*words):
        with pytest.raises(SystemExit):
            cli.main(["ema", *map(str, words)])
        return capsys.readouterr().err

    assert "no snapshot at step 7; there are [15, 30" in fails(only_two, "--step", 7)
    assert "of its profile is missing" in fails(only_two, "--std", 0.003)
    assert "in [0.001, 0.28]" in fails(only_two, "--std", 0.5)
    assert "run folder" in fails(tmp_path / "nothing")
    assert not list((only_two / "ema").glob("std_*"))
    victim = find_snapshots(only_two)[3].path
    victim.write_bytes(victim.read_bytes()[:50])
    assert "is damaged" in fails(only_two)
    shutil.rmtree(only_two / "ema")
    assert "--ema.tracked [0.05,0.1]" in fails(only_two)


def test_a_power_function_average_as_the_one_that_is_sampled(tmp_path):
    ema = EMAConfig(std=0.1, tracked=(0.1,), snapshot_every=4)
    run = train(replace(tiny(), ema=ema), tmp_path / "run")
    folder = run / "checkpoints" / "step_0000006"
    assert same(
        load_file(folder / "ema.safetensors"), load_file(folder / "ema_std_0.100.safetensors")
    )
    assert [s.step for s in find_snapshots(run)] == [4, 6]
