"""Losses of a set of samples in the features of frozen encoders: for the training after training.

    x_i = sampler(network, z_i, y_i)       1 to 4 evaluations, with gradient
    f_i = encoder(pixels(x_i))             frozen
    L   = sum_k w_k D_k({f_i}) / (|D_k| + eps), the denominator without gradient

They compare the distribution of samples with that of real images.  No residual F - F_tgt of a row
makes them, whatever its target: they are no setting of the residual but additive terms beside it,
and ``residual_weight = 0`` leaves them alone.

    fd    Frechet distance of the first two moments (FD-loss, arXiv 2604.28190), eps = 0.01
    mmd   squared MMD of a Gaussian kernel (iRDM, arXiv 2607.02375), eps = 1e-7

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
_ROUNDS, _SUBSET = 20, 4096  # of k-means; of rows whose median distance is the width of the kernel


@dataclass(frozen=True)
class SetTerm:
    """A loss of the set of samples in the features of one encoder."""

    extractor: str | None = None
    """name as in ``--extractor``; null: that of the data."""
    weights: str | None = None
    """path of its weights; null: its own."""
    reference: str | None = None
    """statistics of real images by `ucgm reference`; null: the training data."""
    distance: Literal["fd", "mmd"] = "fd"
    """Frechet distance, or squared MMD."""
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
        alone = self.decay is None and batch >= _ENOUGH * width
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
        return self.term.weight * found / (self.distance.abs() + self.epsilon)

    def begin(self, features: Tensor) -> None:
        """Start from the features (queue, d) of other samples."""
        self.rows.copy_(features[: len(self.rows)])

    def measure(self, batch: Tensor) -> Tensor:
        """The distance, a float64 scalar, with the features ``batch`` (B, d) as the newest."""
        raise NotImplementedError(f"{type(self).__name__} must define measure")

    def remember(self, batch: Tensor, good: Tensor) -> None:
        """Take over the features ``batch`` (B, d), if all are ``good``, a scalar."""

    def _places(self, count: int) -> Tensor:
        """Of the ``count`` oldest samples."""
        return (self.place + torch.arange(count, device=self.place.device)) % len(self.rows)


class FrechetLoss(SetLoss):
    """Frechet distance of the moments of the queue, or of averaged ones.

        D = |m - m_r|^2 + tr S + tr S_r - 2 tr (R S R)^(1/2),    R = S_r^(1/2)

    The state is the mean of the outer products of (1, f) in float64, so that a batch changes it by
    its own products and those of the samples it replaces.

    Args:
        term: its settings.
        real: moments of the real images.
    """

    state: Tensor
    epsilon = 0.01

    def __init__(self, term: SetTerm, real: Real) -> None:
        super().__init__(term, len(real.mean))
        values, vectors = torch.linalg.eigh(real.covariance.double())
        root = vectors * values.clamp_min(0).sqrt() @ vectors.T
        for name, value in (("mean_real", real.mean.double()), ("root_real", root)):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("state", torch.zeros(len(root) + 1, len(root) + 1).double())
        self._next = self.state

    def begin(self, features: Tensor) -> None:
        """Start from the moments of ``features`` (n, d)."""
        super().begin(features)
        self.state.copy_(_products(features.double()) / len(features))

    def measure(self, batch: Tensor) -> Tensor:
        """The Frechet distance; the gradient is that of the rows of ``batch`` (B, d)."""
        count, decay = len(self.rows), self.term.decay
        if decay is not None:
            state = decay * self.state + (1.0 - decay) * _products(batch) / len(batch)
        elif count:
            old = self.rows[self._places(len(batch))].double()
            state = self.state + (_products(batch) - _products(old)) / count
        else:
            state, count = _products(batch) / len(batch), len(batch)
        self._next = state.detach()
        mean = state[0, 1:]
        covariance = state[1:, 1:] - mean.outer(mean)
        if count:
            covariance = covariance * (count / (count - 1))
        return self.to_real(mean, covariance)

    def to_real(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Frechet distance, a scalar, of moments (d,) and (d, d) to those of the real images."""
        mean_real, root = self.get_buffer("mean_real"), self.get_buffer("root_real")
        product = root @ covariance @ root
        values = torch.linalg.eigvalsh((product + product.T) / 2)
        # What is 0 but for rounding has no gradient; that of its root would be without bound.
        there = values > 1e-14 * values.detach().max().clamp_min(1e-300)
        cross = torch.where(there, torch.where(there, values, 1.0).sqrt(), 0.0).sum()
        traces = covariance.trace() + root.square().sum()
        return (mean - mean_real).square().sum() + traces - 2.0 * cross

    def remember(self, batch: Tensor, good: Tensor) -> None:
        """Keep the moments that were measured."""
        self.state = torch.where(good, self._next, self.state)


class KernelLoss(SetLoss):
    """Squared MMD with k(a, b) = exp(-|a - b|^2 / 2 s^2), s the root of the median of |a - b|^2.

        D = mean_ij k(f_i, f_j) - 2 mean_i sum_c a_c k(f_i, z_c) + mean k(r, r'),
        a = (K_zz + 1e-6)^-1 mean_r k(z, r)

    The centres z stand for the real images r.

    Args:
        term: its settings.
        rows: (N, d) features of the real images.
    """

    epsilon = 1e-7

    def __init__(self, term: SetTerm, rows: Tensor) -> None:
        super().__init__(term, rows.shape[1])
        real, generator = rows.double(), torch.Generator().manual_seed(0)
        some = real[torch.randperm(len(real), generator=generator)[:_SUBSET]]
        self.width = float(torch.pdist(some).square().median().sqrt())
        centres = k_means(real, term.centres, generator)
        kernel = self.kernel(centres, centres) + 1e-6 * torch.eye(len(centres)).double()
        shares = torch.linalg.solve(kernel, self.kernel(centres, real).mean(1))
        self.own = sum(float(self.kernel(part, real).sum()) for part in real.split(1024))
        self.own /= len(real) ** 2
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("shares", shares, persistent=False)

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """k (n, m) of the rows of a (n, d) and b (m, d)."""
        squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2.0 * a @ b.T
        return torch.exp(squares.clamp_min(0.0) / (-2.0 * self.width**2))

    def measure(self, batch: Tensor) -> Tensor:
        """The squared MMD; the gradient is that of the rows of ``batch`` (B, d)."""
        centres, shares = self.get_buffer("centres"), self.get_buffer("shares")
        among, toward, count = self.kernel(batch, batch).sum(), batch.new_zeros(()), len(batch)
        if count < len(self.rows):
            order, count = self._places(len(self.rows)), len(self.rows)
            rest = self.rows[order[len(batch) :]].double()
            among = among + 2.0 * self.kernel(batch, rest).sum() + self.kernel(rest, rest).sum()
            toward = (self.kernel(rest, centres) @ shares).sum()
        toward = toward + (self.kernel(batch, centres) @ shares).sum()
        return among / count**2 - 2.0 * toward / count + self.own


def _products(rows: Tensor) -> Tensor:
    """sum (1, f)(1, f)^T (d + 1, d + 1) over the rows f (n, d)."""
    extended = torch.cat((rows.new_ones(len(rows), 1), rows), dim=1)
    return extended.T @ extended


def k_means(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres (count, d) of rows (N, d) after 20 rounds; the rows themselves where they are few."""
    if len(rows) <= count:
        return rows
    centres = rows[torch.randperm(len(rows), generator=generator)[:count]]
    for _ in range(_ROUNDS):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in rows.split(4096)])
        number = torch.bincount(nearest, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        centres = torch.where(number > 0, sums / number.clamp_min(1), centres)
    return centres


def set_loss(term: SetTerm, real: Real) -> SetLoss:
    """The loss of a term.

    Raises:
        ValueError: mmd without rows of real images.
    """
    if term.distance == "fd":
        return FrechetLoss(term, real)
    if real.rows is None or len(real.rows) < 2:
        raise ValueError(
            "objective.sets: mmd needs feature rows of real images: make the reference with "
            "`ucgm reference` and its --num-rows"
        )
    return KernelLoss(term, real.rows)
