"""Scores from rows of features and logits, as torch-fidelity defines them.

KID                 unbiased squared MMD with the kernel (a.b / d + 1)^3, averaged over 100
                    random subsets (1801.01401).  It may come out slightly below zero, and does
                    not need n >> d as FID does
precision, recall   share of generated samples inside the balls that reach from each reference
                    sample to its third nearest (k = 3 as in ADM, 2105.05233), and the other way
                    round (1904.06991).  Both depend on the sizes: compare equal ones only
inception score     exp E_x KL( p(y|x) || p(y) ), averaged over ten parts of a fixed shuffle
                    (1606.03498): parts of a class-sorted set would each hold a tenth of the
                    classes
accuracy            how often a classifier names the class that was asked for: the only score
                    here that sees permuted labels
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_SEED = 2020  # of subsets and parts, torch-fidelity's
_BLOCK = 16  # rows of products that a cache holds in float64


def kernel_distance(
    generated: Tensor, reference: Tensor, subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the squared MMD.

    Args:
        generated: (N, d) features.
        reference: (M, d) features.
        subsets: how many subsets.
        subset_size: rows of each; lowered to the smaller set when that is smaller.

    Products are made in the precision of the features, their powers and sums in float64.

    Raises:
        ValueError: when a set has fewer than two rows.
    """
    size = min(subset_size, len(generated), len(reference))
    if size < 2:
        raise ValueError(f"the kernel distance needs at least 2 samples of each set, got {size}.")
    choose, found = np.random.RandomState(_SEED), []
    sets, d = [rows.cpu().numpy() for rows in (generated, reference)], generated.shape[1]
    for _ in range(subsets):
        x, y = (rows[choose.choice(len(rows), size, replace=False)] for rows in sets)
        within, starts = 0.0, range(0, size, _BLOCK)
        for products in (x @ x.T, y @ y.T):  # numpy makes half of them, and one half is summed
            for a, b in ((a, a + _BLOCK) for a in starts):
                corner = products[a:b, a:b]
                within += 2 * _kernel_sum(products[a:b, b:], d) + _kernel_sum(corner, d)
            within -= _kernel_sum(products.diagonal(), d)
        products = x @ y.T
        between = sum(_kernel_sum(products[a : a + _BLOCK], d) for a in starts)
        found.append(within / (size * (size - 1)) - 2.0 * between / size**2)
    return float(np.mean(found)), float(np.std(found))


def _kernel_sum(products: np.ndarray, d: int) -> float:
    """Sum over all (p / d + 1)^3 of ``products``, in float64."""
    k = np.multiply(products, 1 / d, dtype=np.float64)
    k += 1.0
    return float(np.vdot(k * k, k))


def precision_recall(
    generated: Tensor, reference: Tensor, k: int = 3, block: int = 1024
) -> tuple[float, float]:
    """Precision and recall of ``generated`` (N, d) against ``reference`` (M, d), in this order.

    Distances are taken in blocks of rows.  The mean of the reference is subtracted first, which
    changes no distance but the rounding of float32 for the better.

    Raises:
        ValueError: when a set has no k-th neighbour.
    """
    for name, rows in (("generated", generated), ("reference", reference)):
        if len(rows) <= k:
            raise ValueError(f"precision and recall at k={k} need more than {k} {name} samples.")
    centre = reference.double().mean(dim=0).to(reference.dtype)
    ours, theirs = (generated - centre).split(block), (reference - centre).split(block)
    radii, balls = (_neighbour_distances(parts, k) for parts in (ours, theirs))
    precise, recalled = ([torch.zeros_like(r, dtype=torch.bool) for r in p] for p in (radii, balls))
    for i, a in enumerate(ours):
        for j, b in enumerate(theirs):
            distances = torch.cdist(a, b)
            precise[i] |= (distances <= balls[j]).any(dim=1)
            recalled[j] |= (distances <= radii[i][:, None]).any(dim=0)
    precision, recall = (float(torch.cat(p).double().mean()) for p in (precise, recalled))
    return precision, recall


def _neighbour_distances(parts: Sequence[Tensor], k: int) -> list[Tensor]:
    """Distance of every row to its k-th nearest other: (n,) for each part (n, d) of a set."""
    nearest = [part.new_full((len(part), k + 1), torch.inf) for part in parts]
    for i, a in enumerate(parts):
        for j, b in enumerate(parts[: i + 1]):  # one half: the other is the same distances
            distances = torch.cdist(a, b)
            for n, found in {i: distances, j: distances.T}.items():
                both = torch.cat((nearest[n], found), dim=1)
                nearest[n] = both.topk(k + 1, dim=1, largest=False).values
    return [rows[:, k] for rows in nearest]


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over ``splits`` parts, from logits (N, K).

    Raises:
        ValueError: when there are fewer samples than parts.
    """
    if len(logits) < splits:
        raise ValueError(f"the inception score needs at least {splits} samples, got {len(logits)}.")
    order = torch.from_numpy(np.random.RandomState(_SEED).permutation(len(logits)))
    scores = []
    for i in range(splits):
        part = order[i * len(logits) // splits : (i + 1) * len(logits) // splits]
        log_p = logits[part].double().log_softmax(dim=1)
        p = log_p.exp()
        q = p.mean(dim=0)  # of a class that never occurs it is 0, and adds nothing
        divergence = (p * log_p).sum(dim=1).mean() - torch.xlogy(q, q).sum()
        scores.append(float(divergence.exp()))
    return float(np.mean(scores)), float(np.std(scores))


def conditional_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows (N, K) whose largest logit is that of ``labels`` (N,)."""
    if len(logits) != len(labels):
        raise ValueError(f"{len(logits)} rows of logits for {len(labels)} labels.")
    return float((logits.argmax(dim=1) == labels).double().mean())
