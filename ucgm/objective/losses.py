"""Losses of a prediction F against its target, and weights over time.

With q the mean over a sample of the squared error:

    l2            q
    pseudo-Huber  sqrt(q + c^2) - c        (arXiv 2310.14189, equation 7)

The pseudo-Huber loss has a minimiser that is not the conditional mean when the noise of the
target is skewed, so plain flow matching uses l2.  At c = 0 it is the root of the mean squared
error, whose gradient is not defined at a residual of 0.

The cosine term adds 1 - cos(F, F_tgt) over channels, averaged over positions (LightningDiT,
arXiv 2501.01423, section 4).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ucgm.transport import HALF_PI

TimeWeight = Literal["cosine"]


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all axes but the first."""
    return x.flatten(1).mean(1)


def per_sample_loss(
    prediction: Tensor, target: Tensor, pseudo_huber_c: float | None, cosine_loss: bool
) -> Tensor:
    """(B,) unweighted losses of (B, C, ...) predictions."""
    loss = mean_flat((prediction - target) ** 2)
    if pseudo_huber_c is not None:
        loss = torch.sqrt(loss + pseudo_huber_c**2) - pseudo_huber_c
    if cosine_loss:
        loss = loss + mean_flat(1.0 - functional.cosine_similarity(prediction, target, dim=1))
    return loss


def time_weight(name: TimeWeight | None, t: Tensor) -> Tensor:
    """(B,) weights of the rows; ``cosine``: cos(pi t / 2)."""
    return torch.ones_like(t) if name is None else torch.cos(HALF_PI * t)
