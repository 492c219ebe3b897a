"""Scores that need a classifier's logits and no reference.

Inception score (1606.03498), the mean over ten parts of

    exp( E_x KL( p(y|x) || p(y) ) ),   p(y) = mean of p(y|x) in the part,

after a fixed shuffle: contiguous parts of a class-sorted set would each hold a tenth of the
classes and the score would collapse.  The shuffle is torch-fidelity's, so the numbers agree.

Conditional accuracy: how often the classifier names the class that was asked for.  It is the only
score here that sees permuted labels.
"""

import numpy as np
import torch
from torch import Tensor


def inception_score(logits: Tensor, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Mean and standard deviation over ``splits`` parts, from logits (N, K).

    Raises:
        ValueError: when there are fewer samples than parts.
    """
    count = len(logits)
    if count < splits:
        raise ValueError(f"the inception score needs at least {splits} samples, got {count}.")
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count))
    scores = []
    for part in range(splits):
        rows = order[part * count // splits : (part + 1) * count // splits]
        log_p = logits[rows].double().log_softmax(dim=1)
        p = log_p.exp()
        divergence = (p * (log_p - p.mean(dim=0, keepdim=True).clamp_min(1e-300).log())).sum(dim=1)
        scores.append(float(divergence.mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def conditional_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows (N, K) whose largest logit is that of ``labels`` (N,)."""
    if len(logits) != len(labels):
        raise ValueError(f"{len(logits)} rows of logits for {len(labels)} labels.")
    return float((logits.argmax(dim=1) == labels).double().mean())
