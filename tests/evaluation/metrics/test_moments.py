import pytest
import torch

from ucgm.evaluation.metrics import Gaussian, RunningMoments, moments_of


def features(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g) + 3.0


@pytest.mark.parametrize("d", [3, 500])
def test_streamed_equals_two_pass(d):
    rows = features(1003, d)
    running = RunningMoments(d)
    for part in rows.split(64):
        running.update(part)
    exact = rows.double()
    got = running.gaussian()
    assert running.count == got.count == 1003
    assert torch.allclose(got.mean, exact.mean(dim=0), rtol=1e-12, atol=0)
    assert torch.allclose(got.covariance, exact.T.cov(), rtol=1e-10, atol=1e-10)
    assert torch.equal(got.covariance, got.covariance.T)


def test_merge_is_a_sum_in_any_order():
    rows = features(1003, 5)
    total = RunningMoments(5)
    for part in reversed(rows.split([500, 0, 1, 502])):
        other = RunningMoments(5)
        other.update(part)
        total.state += other.state
    got, once = total.gaussian(), moments_of(rows)
    assert total.count == 1003
    assert torch.allclose(got.covariance, once.covariance, rtol=1e-12)


def test_large_mean_keeps_its_covariance():
    rows = features(5000, 4).double() + 1000.0  # mean^2 / var = 1e6: float32 sums lose it
    got = moments_of(rows)
    assert torch.allclose(got.covariance, rows.T.cov(), rtol=1e-8)


def test_refuses_what_is_not_finite_and_adds_nothing():
    running = RunningMoments(2)
    running.update(torch.ones(3, 2))
    bad = torch.ones(4, 2)
    bad[1, 0] = torch.inf
    with pytest.raises(ValueError, match="1 of 4 feature rows are not finite"):
        running.update(bad)
    assert running.count == 3 and running.gaussian().mean.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"\(B, 2\)"):
        running.update(torch.ones(4, 3))
    with pytest.raises(ValueError, match="at least 2 samples"):
        RunningMoments(2).gaussian()


def test_a_gaussian_is_checked():
    eye = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="not symmetric"):
        Gaussian(torch.zeros(2), eye + torch.tensor([[0, 0.1], [0, 0]]))
    with pytest.raises(ValueError, match="not finite"):
        Gaussian(torch.tensor([0.0, torch.nan]), eye)
    with pytest.raises(ValueError, match="mean"):
        Gaussian(torch.zeros(3), eye)
    with pytest.raises(ValueError, match="eigenvalue"):
        Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, -0.5])).double()).factor  # noqa: B018
