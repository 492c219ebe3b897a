"""Selectors: which candidates of a class are kept, (n,) losses and (n, d) features to indices.

    random     any
    realism    the lowest loss of the observer (RDED, arXiv 2312.03526)
    herding    i_k = argmax_i <f_i, k mu - sum_{q<k} f_{i_q}>: the mean of the kept features follows
               the mean mu of all (Welling 2009), f of length 1
    kmeans     the candidate nearest to each of k centres
    interval   one of every n / k candidates in the order of their losses (D2C, arXiv 2507.05914)

Ties go to the lower index, so that a result depends on nothing but its arguments.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ucgm.condense.config import Selector


def select(
    selector: Selector,
    losses: Tensor,
    features: Tensor,
    count: int,
    generator: torch.Generator,
    mean: Tensor | None = None,
) -> Tensor:
    """Indices (count,) of the candidates that are kept, the most important first.

    Args:
        selector: the rule.
        losses: (n,) losses of the candidates by the observer.
        features: (n, d) features of the candidates.
        count: how many are kept, at most n.
        generator: of ``random``, ``kmeans`` and ``interval``.
        mean: (d,) mean of unit features to follow in herding; that of the candidates when None.

    Raises:
        ValueError: fewer candidates than asked for.
    """
    if len(losses) < count:
        raise ValueError(f"{count} candidates are to be kept and there are {len(losses)}")
    if selector == "random":
        return torch.randperm(len(losses), generator=generator)[:count]
    if selector == "realism":
        return torch.sort(losses, stable=True).indices[:count]
    if selector == "interval":
        order = torch.sort(losses, stable=True).indices
        start = torch.rand((), generator=generator, dtype=torch.float64)
        return order[((start + torch.arange(count)) * len(order) / count).long()]
    units = functional.normalize(features.double(), dim=1)
    return _kmeans(units, count, generator) if selector == "kmeans" else _herd(units, count, mean)


def apportioned(weights: list[float], total: int) -> list[int]:
    """Counts of the sum ``total`` in proportion to weights, by largest remainders, each at least 1.

    Those whose share is less than 1 have 1, and the others share the rest.
    """
    weights = weights if sum(weights) > 0 else [1.0] * len(weights)
    free, share = list(range(len(weights))), dict[int, float]()
    while len(share) != len(free):
        whole = sum(weights[i] for i in free)
        rest = total - len(weights) + len(free)
        share = {i: rest * weights[i] / whole for i in free}
        free = [i for i in free if share[i] >= 1]
    counts = [int(share.get(i, 1)) for i in range(len(weights))]
    free.sort(key=lambda i: counts[i] - share[i])
    for i in free[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _herd(units: Tensor, count: int, mean: Tensor | None) -> Tensor:
    """Herding of features (n, d) of length 1 to their mean, or to ``mean`` (d,)."""
    mean = units.mean(0) if mean is None else mean.double()
    kept: list[int] = []
    total, free = torch.zeros_like(mean), torch.ones(len(units), dtype=torch.bool)
    for k in range(1, count + 1):
        score = units @ (k * mean - total)
        kept.append(int(score.masked_fill(~free, -torch.inf).argmax()))
        free[kept[-1]] = False
        total = total + units[kept[-1]]
    return torch.tensor(kept)


def _kmeans(units: Tensor, count: int, generator: torch.Generator, rounds: int = 30) -> Tensor:
    """Members (count,) of features (n, d), each nearest to one of the centres; none twice."""
    chosen = [int(torch.randint(len(units), (), generator=generator))]
    for _ in range(count - 1):  # far from those before (k-means++)
        apart = torch.cdist(units, units[chosen]).amin(1).square().clamp_min(1e-12)
        apart[chosen] = 0.0
        chosen.append(int(torch.multinomial(apart, 1, generator=generator)))
    centres = units[chosen]
    for _ in range(rounds):
        nearest = torch.cdist(units, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, units)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    distance, kept = torch.cdist(centres, units), []
    for row in distance:
        row[kept] = torch.inf
        kept.append(int(row.argmin()))
    return torch.tensor(kept)
