"""Precision and recall by nearest neighbours (1904.06991).

The manifold of a set is the union of balls around its samples, each as wide as the distance to the
k-th nearest other sample of the set:

    precision = share of generated samples inside the manifold of the reference
    recall    = share of reference samples inside the manifold of the generated samples

k = 3 as in ADM (2105.05233).  Both depend on the sizes of the two sets: compare equal sizes only.
Distances are taken in blocks, so memory is a constant besides the two sets; the reference mean is
subtracted first, which changes no distance but the rounding of float32 for the better.
"""

import torch
from torch import Tensor


def precision_recall(
    generated: Tensor, reference: Tensor, k: int = 3, block: int = 1024
) -> tuple[float, float]:
    """Precision and recall of ``generated`` (N, d) against ``reference`` (M, d), in this order.

    Raises:
        ValueError: when a set has no k-th neighbour.
    """
    for name, rows in (("generated", generated), ("reference", reference)):
        if len(rows) <= k:
            raise ValueError(f"precision and recall at k={k} need more than {k} {name} samples.")
    centre = reference.double().mean(dim=0).to(reference.dtype)
    generated, reference = generated - centre, reference - centre
    precision = _inside(generated, reference, _radii(reference, k, block), block)
    recall = _inside(reference, generated, _radii(generated, k, block), block)
    return precision, recall


def _radii(rows: Tensor, k: int, block: int) -> Tensor:
    """(N,) distance of each row to its k-th nearest other row."""
    radii = []
    for part in rows.split(block):
        nearest = part.new_full((len(part), 0), 0.0)
        for other in rows.split(block):
            together = torch.cat((nearest, torch.cdist(part, other)), dim=1)
            nearest = together.topk(min(k + 1, together.shape[1]), dim=1, largest=False).values
        radii.append(nearest[:, k])
    return torch.cat(radii)


def _inside(points: Tensor, centres: Tensor, radii: Tensor, block: int) -> float:
    """Share of ``points`` inside at least one ball."""
    count = 0
    for part in points.split(block):
        inside = torch.zeros(len(part), dtype=torch.bool, device=part.device)
        for ball, radius in zip(centres.split(block), radii.split(block), strict=True):
            inside |= (torch.cdist(part, ball) <= radius).any(dim=1)
        count += int(inside.sum())
    return count / len(points)
