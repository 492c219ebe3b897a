"""Sliced-Wasserstein distance of feature rows, as SW_r14 of iRDM (2607.02375) takes it.

    SW(a, b) = sqrt( mean_k W2^2( <theta_k, a>, <theta_k, b> ) ),    theta_k on the unit sphere,

and W2 on a line is exact: the distance of the sorted values, or of the two quantile functions where
the numbers of rows differ.  FID sees mean and covariance alone, this the whole distribution.  It is
in units of the features, so that two extractors compare by ratios to real images only.

As in its public code (vita-epfl/RDM; the text of the paper was not compared): 1,024 directions, the
same in every call; raw features; the root after the mean over directions; ratios to real validation
images over equal numbers of rows, and their mean over encoders.  Other than there: all rows are
used (there 16,384 of samples, of validation and of training images), a larger reference is not cut
to the number of samples, and the random directions are others.  Its published 1.30 was not computed
again: that needs its generator and all of its fourteen encoders.
"""

import numpy as np
import torch
from torch import Tensor

_SEED = 2020  # of directions and of a shuffle, that of KID
_BLOCK = 64  # directions at a time: 13 MB for the projections of 50,000 rows


def sliced_wasserstein(generated: Tensor, reference: Tensor, directions: int = 1024) -> float:
    """Sliced 2-Wasserstein distance of ``generated`` (N, d) to ``reference`` (M, d).

    Two samples of one law are not at 0 but at a distance that falls with N and M: compare equal
    numbers only.  Projections are made in the precision of the features, sums in float64.

    Raises:
        ValueError: when the widths differ, or a set is empty.
    """
    n, m, d = len(generated), len(reference), reference.shape[1]
    if generated.shape[1] != d or not n or not m:
        shapes = f"{tuple(generated.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"the sliced distance needs rows of one width in both sets, got {shapes}.")
    # A shift of both changes no distance, but the rounding of float32 for the better.
    centre = reference.double().mean(dim=0).to(reference.dtype)
    ours, theirs = ((rows - centre).cpu().numpy() for rows in (generated, reference))
    # Quantile functions are steps at i / n and j / m; as whole numbers, at multiples of m and of n.
    starts = np.union1d(np.arange(n) * m, np.arange(m) * n)
    widths = np.diff(starts, append=n * m) / (n * m)
    draw, total = np.random.RandomState(_SEED), 0.0
    for first in range(0, directions, _BLOCK):
        theta = draw.standard_normal((min(_BLOCK, directions - first), d))
        theta /= np.linalg.norm(theta, axis=1, keepdims=True)
        x, y = (theta.astype(rows.dtype) @ rows.T for rows in (ours, theirs))
        x.sort(axis=1)
        y.sort(axis=1)
        gaps = x[:, starts // m] - y[:, starts // n]
        total += float(np.square(gaps, dtype=np.float64).sum(axis=0) @ widths)
    return (total / directions) ** 0.5


def sliced_ratio(
    generated: Tensor, held_out: Tensor, reference: Tensor, labels: Tensor | None = None
) -> float:
    """SW of ``generated`` (N, d) over that of ``held_out`` (K, d), both to ``reference`` (M, d).

    Both are of min(N, K) rows: with unequal numbers the bias of small samples would not cancel, and
    images as good as the held-out ones not be at 1.  The larger set is thinned evenly, the
    generated one within classes: real images mostly lie in the order of their classes, and a set
    whose classes are not in proportion is farther from everything.

    Args:
        generated: of the samples.
        held_out: of real images.
        reference: of other real images.
        labels: (N,) classes of the samples; without them a larger set is thinned at random.

    Raises:
        ValueError: when the widths differ, or a set is empty.
    """
    count = min(len(generated), len(held_out))
    order = np.random.RandomState(_SEED).permutation(len(generated))
    if labels is not None:
        order = order[np.argsort(labels.cpu().numpy()[order], kind="stable")]
    ours = _thinned(generated, order, count)
    real = _thinned(held_out, np.arange(len(held_out)), count)
    return sliced_wasserstein(ours, reference) / sliced_wasserstein(real, reference)


def _thinned(rows: Tensor, order: np.ndarray, count: int) -> Tensor:
    """``count`` of the rows (N, d), evenly spaced in ``order`` (N,)."""
    if len(rows) == count:
        return rows
    return rows[torch.from_numpy(order[np.arange(count) * len(rows) // count])]
