import numpy as np
import pytest
import torch

from ucgm.evaluation.evaluators import Evaluators
from ucgm.evaluation.metrics import (
    conditional_accuracy,
    inception_score,
    kernel_distance,
    precision_recall,
)
from ucgm.evaluation.metrics.moments import moments_of
from ucgm.evaluation.metrics.reference import Reference
from ucgm.evaluation.scoring import Evaluator, FeatureStatistics


def rows(n, d, seed, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g) + shift


def test_inception_score_by_hand():
    logits = 3 * rows(1000, 12, 0)
    found = inception_score(logits)
    order = torch.from_numpy(np.random.RandomState(2020).permutation(1000))
    p = logits[order].double().softmax(dim=1).view(10, 100, 12)
    exact = (p * (p / p.mean(dim=1, keepdim=True)).log()).sum(dim=2).mean(dim=1).exp()
    assert found == (
        pytest.approx(float(exact.mean()), rel=1e-12),
        pytest.approx(float(exact.std(correction=0)), rel=1e-9),
    )


def test_inception_score_of_a_class_that_never_occurs_is_finite():
    logits = torch.zeros(100, 3)
    logits[:, 2] = -2000.0  # exp of it is 0, whose logarithm is none
    assert inception_score(logits) == (1.0, 0.0)


def test_inception_score_closed_forms_and_order():
    certain = 40.0 * torch.eye(10).repeat(100, 1)
    assert inception_score(certain)[0] == pytest.approx(10.0, rel=0.1)
    assert inception_score(torch.zeros(100, 10))[0] == pytest.approx(1.0)
    ordered = certain[certain.argmax(dim=1).argsort()]  # contiguous parts of it would give 1
    assert inception_score(ordered)[0] == pytest.approx(10.0, rel=0.1)
    with pytest.raises(ValueError, match="at least 10"):
        inception_score(certain[:9])


def test_kernel_distance_by_hand():
    a, b = rows(700, 16, 1), rows(650, 16, 2, 0.2)
    draw, values = np.random.RandomState(2020), []
    for _ in range(20):
        x = a[draw.choice(700, 500, replace=False)].double()
        y = b[draw.choice(650, 500, replace=False)].double()
        xx, yy, xy = ((p @ q.T / 16 + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        off = 1 - torch.eye(500, dtype=torch.float64)
        values.append(float(((xx + yy) * off).sum() / (500 * 499) - 2 * xy.mean()))
    mean, std = kernel_distance(a, b, subsets=20, subset_size=500)
    assert mean == pytest.approx(np.mean(values), rel=1e-9)
    assert std == pytest.approx(np.std(values), rel=1e-6)


def test_kernel_distance_is_unbiased():
    # two sets of one law: the mean over many draws is zero within its error, and not above
    values = [
        kernel_distance(rows(100, 4, 2 * i), rows(100, 4, 2 * i + 1), subsets=1)[0]
        for i in range(200)
    ]
    values = torch.tensor(values)
    assert abs(values.mean()) < 3 * values.std() / 200**0.5
    assert values.min() < 0 < values.max()
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(rows(1, 4, 0), rows(5, 4, 0))


@pytest.mark.parametrize("block", [64, 2048])
def test_precision_recall_by_hand(block):
    a, b = rows(700, 8, 1).double(), 0.8 * rows(600, 8, 2, 0.4).double()
    aa, bb, ab = ((p[:, None] - q).norm(dim=2) for p, q in ((a, a), (b, b), (a, b)))
    a_radii, b_radii = (d.sort(dim=1).values[:, 3] for d in (aa, bb))  # column 0 is itself
    precision = float((ab <= b_radii).any(dim=1).double().mean())
    recall = float((ab <= a_radii[:, None]).any(dim=0).double().mean())
    found = precision_recall(a.float(), b.float(), block=block)
    assert found == (pytest.approx(precision, abs=1e-6), pytest.approx(recall, abs=1e-6))
    assert precision != recall  # so that a swap shows


def test_precision_recall_orientation():
    reference = rows(500, 4, 0)
    collapsed = reference[:1] + 1e-3 * rows(200, 4, 1)
    assert precision_recall(collapsed, reference)[0] == 1.0
    assert precision_recall(collapsed, reference)[1] < 0.05
    far = rows(200, 4, 1, 50.0)
    assert precision_recall(far, reference) == (0.0, 0.0)
    assert precision_recall(reference, reference) == (1.0, 1.0)
    with pytest.raises(ValueError, match="more than 3 generated"):
        precision_recall(reference[:3], reference)


def test_precision_recall_far_from_the_origin():
    # a common offset must not cost the small distances their digits
    a, b = rows(300, 8, 1), rows(300, 8, 2, 0.4)
    assert precision_recall(a + 1000, b + 1000) == pytest.approx(precision_recall(a, b), abs=0.02)


def test_conditional_accuracy():
    logits = torch.eye(4)
    assert conditional_accuracy(logits, torch.arange(4)) == 1.0
    assert conditional_accuracy(logits, torch.tensor([1, 2, 3, 3])) == 0.25
    with pytest.raises(ValueError, match="4 rows of logits for 3 labels"):
        conditional_accuracy(logits, torch.arange(3))


def frechet_by_definition(a, b):
    """Of rows (N, d), in float64: the trace of the root by eigenvalues of the product."""
    (m, s), (n, t) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b))
    root = np.sqrt(np.linalg.eigvals(s @ t).real).sum()
    return ((m - n) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root


def test_fdr_and_its_mean_over_six_encoders_are_their_definition():
    parts, moments, ratios = [], {}, []
    for place in range(6):
        width = 4 + place
        samples, real, held_out = (
            rows(400, width, 10 * place + n).double() * (1 + n / 5) + n / 3 for n in range(3)
        )
        prefix = f"e{place}." if place else ""
        moments[f"{prefix}features"] = moments_of(samples)
        known = [
            Reference(name, moments_of(x), "0" * 64) for name, x in (("r", real), ("h", held_out))
        ]
        parts.append(Evaluator(None, ("fdr",), *known, prefix=prefix))
        to_real = [frechet_by_definition(x.numpy(), real.numpy()) for x in (samples, held_out)]
        ratios.append(to_real[0] / to_real[1])
    found = Evaluators(tuple(parts)).score(FeatureStatistics(moments, lambda name: None))
    assert len(found) == 7 and max(ratios) > 1.2 * min(ratios)
    for part, ratio in zip(parts, ratios, strict=True):
        assert found[f"{part.prefix}fdr"] == pytest.approx(ratio, rel=1e-9)
    assert found["fdr_mean"] == pytest.approx(sum(ratios) / 6, rel=1e-9)
