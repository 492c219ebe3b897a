"""Row-keyed random numbers: right distribution, and independent of how a batch is cut."""

import pytest
import torch

from ucgm.runtime.randomness import RowRandom, as_random


def test_a_row_does_not_depend_on_its_batch():
    whole = RowRandom.for_rows(3, 7, torch.arange(10))
    part = RowRandom.for_rows(3, 7, torch.arange(4, 7))
    assert torch.equal(whole.normal(2, 5)[4:7], part.normal(2, 5))
    assert torch.equal(whole.uniform()[4:7], part.uniform())


def test_seed_step_row_and_stream_all_matter():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    rows = [RowRandom.for_rows(s, k, torch.tensor([r])).normal(4) for s, k, r in keys]
    random = RowRandom.for_rows(0, 0, torch.tensor([0]))
    random.normal(4)
    rows.append(random.normal(4))
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 5


def test_moments_and_independence():
    z = RowRandom.for_rows(0, 0, torch.arange(256)).normal(4096)
    n = z.numel()
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    between = (z @ z.T / z.shape[1]).fill_diagonal_(0.0) * z.shape[1] ** 0.5
    assert between.abs().max() < 5.5  # 32,640 standard normal correlations
    lagged = (z[:, 1:] * z[:, :-1]).mean() * n**0.5
    assert abs(lagged) < 4
    u = RowRandom.for_rows(0, 1, torch.arange(64)).uniform(4096)
    assert 0 < u.min() and u.max() < 1
    counts = torch.histc(u, 64, 0, 1)
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 30 < chi2 < 110  # 63 degrees of freedom


def test_precisions_agree():
    one = RowRandom.for_samples(5, torch.arange(8)).normal(33)
    two = RowRandom.for_samples(5, torch.arange(8)).normal(33, dtype=torch.float64)
    torch.testing.assert_close(one.double(), two, rtol=0, atol=1e-4)


def test_torch_generators_are_accepted():
    device = torch.device("cpu")
    one = as_random(torch.Generator().manual_seed(1), 4, device).normal(3)
    two = as_random(torch.Generator().manual_seed(1), 4, device).normal(3)
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match="int64"):
        RowRandom(torch.zeros(3))
