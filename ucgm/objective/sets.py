"""Losses of a set of samples in the features of frozen encoders: for the training after training.

    x_i = sampler(network, z_i, y_i)       1 to 4 evaluations, with gradient
    f_i = encoder(pixels(x_i))             frozen
    L   = sum_k w_k D_k({f_i}) / (|D_k| + eps), the denominator without gradient

They compare the distribution of samples with that of real images.  No residual F - F_tgt of a row
makes them, whatever its target: they are no setting of the residual but additive terms beside it,
and ``residual_weight = 0`` leaves them alone.

    fd    Frechet distance of the first two moments (FD-loss, arXiv 2604.28190), eps = 0.01
    mmd   squared MMD of a Gaussian kernel (iRDM, arXiv 2607.02375), eps = 1e-7
    drift a step along the field that pulls samples to real images and apart (drifting models, arXiv
          2602.04770); it has its scale by itself: L is w D

:mod:`ucgm.objective.set_losses` has the three.

A batch is too small for the moments of 1,000 features.  They are those of a queue, in which the
batch has taken the place of the oldest samples, or an average of moments over the steps; only the
batch has a gradient.  Both start from samples of the network as it begins.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ucgm.runtime.values import Count, NotNegative, Range, check_values

_QUEUE, _ENOUGH = 50_000, 16  # samples of arXiv 2604.28190; of a batch, per feature


@dataclass(frozen=True)
class SetTerm:
    """A loss of the set of samples in the features of one encoder."""

    extractor: str | None = None
    """name as in ``--extractor``; null: that of the data."""
    weights: str | None = None
    """path of its weights; null: its own."""
    reference: str | None = None
    """statistics of real images by `ucgm reference`; null: the training data."""
    distance: Literal["fd", "mmd", "drift"] = "fd"
    """Frechet distance, squared MMD, or the drift of the batch toward real images."""
    weight: NotNegative = 1.0
    """w."""
    queue: Annotated[int, Range(0, 10**7)] | None = None
    """samples that the distance is of, more than a batch; the work of mmd grows with its square; 0:
    the batch alone; null: that where a batch is 16 times the features or more, else 50,000."""
    decay: Annotated[float, Range(0.0, 0.99999)] | None = None
    """of fd: average the moments over the steps with this decay, and start from ``queue`` samples;
    null: they are those of the queue."""
    centres: Count = 4096
    """of mmd: centres that stand for the real images."""
    clip: bool = True
    """the encoder sees pixels clipped to their range, as those of a saved image are; false: as they
    are, which is what the published losses do."""

    def of_batch(self, batch: int, width: int) -> "SetTerm":
        """The term with its ``queue``, for a ``batch`` of samples with features (``width``,).

        A queue answers late, by as many steps as it holds batches, and a model that is trained fast
        has by then gone past what it asks for; a batch that fixes the moments needs none.

        Raises:
            ValueError: the queue was given, and holds less than a batch.
        """
        drift = self.distance == "drift"
        alone = drift or (self.decay is None and batch >= _ENOUGH * width)
        queue = self.queue if self.queue is not None else 0 if alone else max(_QUEUE, batch)
        if 0 < queue < batch:
            raise ValueError(
                f"objective.sets: a queue of {queue} holds less than a batch of {batch}: make it "
                "longer, or 0 for the batch alone"
            )
        return replace(self, queue=queue)

    def __post_init__(self) -> None:
        """Refuse what a distance does not have."""
        check_values(self, "objective.sets")
        if self.decay is not None and (self.distance != "fd" or self.queue in (0, 1)):
            raise ValueError(
                "objective.sets: decay is of moments, of fd, which start from a queue of samples"
            )
        if self.distance == "drift" and self.queue:
            raise ValueError("objective.sets: drift is of the batch alone: leave out the queue")


class Real(NamedTuple):
    """Real images in one feature space: mean (d,), covariance (d, d), rows (N, d) or None."""

    mean: Tensor
    covariance: Tensor
    rows: Tensor | None


class SetLoss(nn.Module):
    """A term, and the samples it remembers.

    Args:
        term: its settings.
        width: number of features d.

    Attributes:
        rows: (queue, d) features of the newest samples; none where moments are averaged.
        place: () int64, the oldest of them.
        distance: () of the last step.
    """

    rows: Tensor
    place: Tensor
    epsilon = 0.0

    def __init__(self, term: SetTerm, width: int) -> None:
        super().__init__()
        self.term = term
        kept = term.queue or 0 if term.decay is None else 0
        self.register_buffer("rows", torch.zeros(kept, width))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.distance = torch.zeros(())

    def forward(self, features: Tensor) -> Tensor:
        """The weighted loss, a scalar, of the newest features (B, d); they are remembered."""
        good = features.detach().isfinite().all()
        batch = torch.where(good, features.double(), 0.0)  # a root of NaN would end the run
        found = torch.where(good, self.measure(batch), torch.nan)
        with torch.no_grad():
            self.distance = found.detach()
            if len(self.rows):
                places = self._places(len(batch))
                self.rows[places] = torch.where(good, features, self.rows[places]).to(self.rows)
                after = (self.place + len(batch)) % len(self.rows)
                self.place = torch.where(good, after, self.place)
            self.remember(batch.detach(), good)
        return self.term.weight * self.scaled(found)

    def begin(self, features: Tensor) -> None:
        """Start from the features (queue, d) of other samples."""
        self.rows.copy_(features[: len(self.rows)])

    def measure(self, batch: Tensor) -> Tensor:
        """The distance, a float64 scalar, with the features ``batch`` (B, d) as the newest."""
        raise NotImplementedError(f"{type(self).__name__} must define measure")

    def scaled(self, distance: Tensor) -> Tensor:
        """The ``distance``, a scalar, so that terms in features of any encoder weigh alike."""
        return distance / (self.distance.abs() + self.epsilon)

    def remember(self, batch: Tensor, good: Tensor) -> None:
        """Take over the features ``batch`` (B, d), if all are ``good``, a scalar."""

    def _places(self, count: int) -> Tensor:
        """Of the ``count`` oldest samples."""
        return (self.place + torch.arange(count, device=self.place.device)) % len(self.rows)
