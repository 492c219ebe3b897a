import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from ucgm.evaluation.metrics import Gaussian, frechet_distance, moments_of


def gaussian(mean, covariance, count=None):
    return Gaussian(
        torch.as_tensor(mean, dtype=torch.float64),
        torch.as_tensor(covariance, dtype=torch.float64),
        count,
    )


def rows(n, d, seed, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1) ** -0.5
    return torch.randn(n, d, generator=g) * spectrum + shift


def theirs(a, b):
    stats = [fid_features_to_statistics(x.double()) for x in (a, b)]
    return fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]


def test_closed_forms():
    eye = torch.eye(3)
    shift = torch.tensor([1.0, -2.0, 0.5])
    assert frechet_distance(gaussian(shift, eye), gaussian(torch.zeros(3), eye)) == pytest.approx(
        5.25, abs=1e-12
    )
    # commuting covariances: sum of (sqrt(a) - sqrt(b))^2, in a rotated basis
    g = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=g)).Q
    a, b = torch.tensor([4.0, 1.0, 0.25]).double(), torch.tensor([1.0, 9.0, 0.0]).double()
    one = gaussian(torch.zeros(3), turn @ a.diag() @ turn.T)
    two = gaussian(torch.zeros(3), turn @ b.diag() @ turn.T)  # singular: the eigh fallback
    expected = float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(one, two) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(two, one) == pytest.approx(expected, abs=1e-6)


def test_a_set_against_itself_is_zero():
    same = moments_of(rows(500, 40, 0))
    assert abs(frechet_distance(same, same)) < 1e-10


@pytest.mark.parametrize("n, m, d", [(900, 897, 32), (3000, 2500, 200)])
def test_equals_torch_fidelity(n, m, d):
    a, b = rows(n, d, 1), rows(m, d, 2, shift=0.05)
    ours = frechet_distance(moments_of(a), moments_of(b))
    assert ours == pytest.approx(theirs(a, b), rel=1e-9)


def test_rank_deficient_is_symmetric_and_exact():
    # 50 samples of 200 features: the true square root has 49 eigenvalues, the others are rounding
    a, b = rows(50, 200, 3), rows(1000, 200, 4)
    one, two = moments_of(a), moments_of(b)
    forward, backward = frechet_distance(one, two), frechet_distance(two, one)
    centred = (a.double() - a.double().mean(dim=0)) / np.sqrt(49)
    inner = torch.linalg.eigvalsh(centred @ two.covariance @ centred.T)[1:]  # 49 are not zero
    small = inner.sqrt().sum()
    exact = (one.mean - two.mean).square().sum() + one.covariance.trace()
    exact = float(exact + two.covariance.trace() - 2 * small)
    assert forward == pytest.approx(exact, rel=1e-9)
    assert backward == pytest.approx(exact, rel=1e-7)
    assert forward == pytest.approx(theirs(a, b), abs=1e-3)  # theirs keeps the rounding


def test_other_width_is_refused():
    with pytest.raises(ValueError, match="32 features and the reference 2048"):
        frechet_distance(
            gaussian(torch.zeros(32), torch.eye(32)), gaussian(torch.zeros(2048), torch.eye(2048))
        )


def test_float32_statistics_of_foreign_files_are_enough():
    a, b = moments_of(rows(900, 32, 1)), moments_of(rows(900, 32, 2, 0.1))
    coarse = gaussian(b.mean.float(), b.covariance.float())
    assert frechet_distance(a, coarse) == pytest.approx(frechet_distance(a, b), rel=1e-5)
