"""The sliced-Wasserstein distance against closed forms and the definition row by row."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from tests.evaluation.metrics.test_scores import rows
from ucgm.evaluation.metrics import sliced_ratio, sliced_wasserstein
from ucgm.evaluation.metrics.moments import moments_of
from ucgm.evaluation.metrics.reference import Reference
from ucgm.evaluation.scoring import Evaluator, FeatureStatistics


def directions(count, d):
    theta = np.random.RandomState(2020).standard_normal((count, d))
    return theta / np.linalg.norm(theta, axis=1, keepdims=True)


def by_definition(a, b, count):
    """Every row as often as the least common multiple asks, sorted, in float64."""
    whole = math.lcm(len(a), len(b))
    values = []
    for theta in directions(count, a.shape[1]):
        x, y = (np.sort(np.repeat(s.double().numpy() @ theta, whole // len(s))) for s in (a, b))
        values.append(((x - y) ** 2).mean())
    return np.mean(values) ** 0.5


@pytest.mark.parametrize("d", [1, 3, 40])
def test_a_shift_moves_every_projection_by_its_own(d):
    a, shift = rows(500, d, 0).double(), rows(1, d, 1).double()
    found = sliced_wasserstein(a + shift, a)
    projected = directions(1024, d) @ shift[0].numpy()
    assert found == pytest.approx(np.mean(projected**2) ** 0.5, rel=1e-12)
    assert found == pytest.approx(float(shift.norm()) / d**0.5, rel=0.1)  # in expectation
    assert sliced_wasserstein(a, a) == 0.0


def test_two_gaussians_on_a_line():
    """W2^2 = (m - n)^2 + (s - t)^2, from quantiles that are the law's own."""
    q = torch.from_numpy(norm.ppf((np.arange(200_000) + 0.5) / 200_000))[:, None]
    found = sliced_wasserstein(0.3 + 2.0 * q, q - 1.0, directions=3)  # all of them are +1 or -1
    assert found == pytest.approx((1.3**2 + 1.0) ** 0.5, rel=1e-4)
    assert found != pytest.approx(1.3**2 + 1.0, rel=0.1)  # a distance, not its square


@pytest.mark.parametrize("sizes", [(60, 60), (60, 45), (45, 60), (7, 12), (1, 9), (9, 1), (20, 40)])
def test_unequal_sizes_are_exact(sizes):
    a, b = rows(sizes[0], 5, 3).double(), 1.5 * rows(sizes[1], 5, 4, 0.5).double()
    for count in (1, 70, 128):  # less than a block, and one that is not full
        found = sliced_wasserstein(a, b, count)
        assert found == pytest.approx(by_definition(a, b, count), rel=1e-12)
    assert sliced_wasserstein(b, a, count) == pytest.approx(found, rel=1e-12)
    shuffled = a[torch.randperm(len(a), generator=torch.Generator().manual_seed(0))]
    assert sliced_wasserstein(shuffled, b, count) == pytest.approx(found, rel=1e-12)
    assert sliced_wasserstein(a.repeat(3, 1), b, count) == pytest.approx(found, rel=1e-12)


def test_float32_far_from_the_origin():
    a, b = rows(300, 64, 1), rows(250, 64, 2, 0.4)
    found = sliced_wasserstein(a, b)
    assert found == pytest.approx(by_definition(a, b, 1024), rel=1e-5)
    assert sliced_wasserstein(a + 1000, b + 1000) == pytest.approx(found, rel=1e-4)
    assert found == sliced_wasserstein(a.clone(), b.clone())


def test_it_sees_a_shape_that_mean_and_covariance_do_not():
    gaussian, signs = rows(2000, 2, 0), rows(2000, 2, 1).sign()
    same = sliced_wasserstein(rows(2000, 2, 2), gaussian)
    assert sliced_wasserstein(signs, gaussian) > 5 * same


def test_the_ratio_is_one_for_rows_as_good_as_the_held_out_ones():
    reference, held_out = rows(800, 8, 0), rows(100, 8, 1)
    values = [sliced_ratio(rows(1000, 8, seed), held_out, reference) for seed in range(2, 12)]
    assert np.mean(values) == pytest.approx(1.0, abs=0.1)
    uneven = sliced_wasserstein(rows(1000, 8, 2), reference)
    assert uneven / sliced_wasserstein(held_out, reference) < 0.6  # of other numbers it is not
    assert sliced_ratio(held_out, held_out, reference) == 1.0
    few = rows(50, 8, 2)
    expected = sliced_wasserstein(few, reference)
    assert sliced_ratio(few, few, reference) == 1.0
    assert sliced_ratio(2 * few, few, reference) == pytest.approx(
        sliced_wasserstein(2 * few, reference) / expected
    )


def classes(count, seed, labels=None):
    """Rows of ten classes far apart, and their labels, which take turns where none are given."""
    labels = torch.arange(count) % 10 if labels is None else labels
    centres = 3.0 * rows(10, 8, 100)
    return centres[labels] + rows(count, 8, seed), labels


def test_a_larger_set_keeps_its_classes_in_proportion():
    """Of 900 samples whose labels take turns every ninth would do, of 1,000 every tenth not."""
    held_out, _ = classes(100, 1, torch.arange(100) // 10)  # in the order of their classes
    reference, _ = classes(2000, 0)
    for count in (900, 1000):
        samples = [classes(count, seed) for seed in range(2, 10)]
        known = np.mean([sliced_ratio(s, held_out, reference, labels) for s, labels in samples])
        blind = np.mean([sliced_ratio(s, held_out, reference) for s, _ in samples])
        assert known == pytest.approx(1.0, abs=0.1) and blind > 1.3
    many, _ = classes(1000, 1, torch.arange(1000) // 100)
    few = [sliced_ratio(classes(100, seed)[0], many, reference) for seed in range(2, 10)]
    assert np.mean(few) == pytest.approx(1.0, abs=0.15)


def test_rows_that_do_not_fit_are_named():
    for a, b in ((rows(4, 3, 0), rows(4, 2, 0)), (rows(0, 2, 0), rows(4, 2, 0))):
        with pytest.raises(ValueError, match=r"one width in both sets, got \("):
            sliced_wasserstein(a, b)


def test_the_ratio_needs_held_out_rows_of_other_images():
    real, other = rows(50, 4, 0), rows(50, 4, 1)
    extractor = type("E", (), {"name": "e", "dimensions": {"features": 4}, "num_classes": 0})

    def why(features, held_out):
        references = [
            Reference(name, moments_of(x), "0" * 64, features=x if kept else None)
            for name, x, kept in (("r", real, features), ("h", *held_out))
        ]
        reasons = Evaluator(extractor, ("sw", "swr"), *references).unavailable(10)
        return reasons["sw"], reasons["swr"]

    assert why(True, (other, True)) == ("", "")
    assert "r holds no feature rows" in why(False, (other, True))[0]
    assert "h holds no feature rows" in why(True, (other, False))[1]
    assert why(True, (real, True)) == ("", "the held-out images are those of reference r")
    part = Evaluator(extractor, ("sw", "swr"), Reference("r", moments_of(real), "", features=real))
    assert part.unavailable(10)["sw"] == "" and "no held-out" in part.unavailable(10)["swr"]
    held_out = Reference("h", moments_of(other), "", features=other)
    part = Evaluator(extractor, ("sw", "swr"), part.reference, held_out)
    samples, labels = rows(70, 4, 2), torch.arange(70) % 3
    known = {"features": samples, "labels": labels}
    scores = part.score(FeatureStatistics({}, known.__getitem__))
    assert scores == {
        "sw": sliced_wasserstein(samples, real),
        "swr": sliced_ratio(samples, other, real, labels),
    }
