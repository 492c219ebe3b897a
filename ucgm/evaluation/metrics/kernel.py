"""Kernel distance (KID, 1801.01401): the unbiased squared MMD with a cubic kernel.

    k(a, b) = (a.b / d + 1)^3
    MMD^2   = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

averaged over random subsets of equal size.  It is unbiased for independent draws, so values
slightly below zero are right when the two sets agree, and it does not need n >> d as FID does.
Subsets are those of torch-fidelity (numpy's ``RandomState(2020)``), so the numbers agree.
"""

import numpy as np
import torch
from torch import Tensor


def kernel_distance(
    generated: Tensor,
    reference: Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the squared MMD.

    Args:
        generated: (N, d) features.
        reference: (M, d) features.
        subsets: how many subsets.
        subset_size: rows of each; lowered to the smaller set when that is smaller.
        seed: of the choice of subsets.
    """
    size = min(subset_size, len(generated), len(reference))
    if size < 2:
        raise ValueError(f"the kernel distance needs at least 2 samples of each set, got {size}.")
    choose = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x = generated[torch.from_numpy(choose.choice(len(generated), size, replace=False))]
        y = reference[torch.from_numpy(choose.choice(len(reference), size, replace=False))]
        values.append(_squared_mmd(x.double(), y.double()))
    return float(np.mean(values)), float(np.std(values))


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    count = len(x)
    pairs = count * (count - 1)
    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / pairs
    return float(within - 2.0 * kernel(x, y).mean())
