"""The distances of :mod:`ucgm.objective.sets`: Frechet distance, kernel distance, drift."""

import torch
from torch import Tensor

from ucgm.objective.sets import Real, SetLoss, SetTerm

_ROUNDS, _SUBSET = 20, 4096  # of k-means; of rows whose median distance is the width of the kernel
_TEMPERATURES = (0.02, 0.05, 0.2)


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


class DriftLoss(SetLoss):
    """Squared length of a step along the drift field V of the batch (arXiv 2602.04770, its code).

        L = |f - sg(f + sum_T V_T / rms(V_T))|^2,    V_T(f_i) = sum_jk a+_ij a-_ik (r_j - f_k)

    a+ and a- are affinities to real images r_j and to the other samples f_k: the roots of the
    softmax of -|a - b| / T over rows times that over columns.  V vanishes on average where both
    sets are of one law.  Lengths are in units of the mean distance.  It has the gradient of L, and
    the value mean V_T^2, summed over T, which falls as the sets approach.  Samples far narrower
    than the data may collapse to a point: it is for models that are good already.  In the paper
    each class is a set of its own.

    Args:
        term: its settings.
        rows: (N, d) features of the real images; a step takes as many of them as samples.
    """

    def __init__(self, term: SetTerm, rows: Tensor) -> None:
        super().__init__(term, rows.shape[1])
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        self.register_buffer("real", rows.double()[order], persistent=False)

    def measure(self, batch: Tensor) -> Tensor:
        """mean V^2; the gradient is that of the rows of ``batch`` (B, d) in L."""
        real = self.get_buffer("real")
        places = self.place + torch.arange(min(len(batch), len(real)), device=batch.device)
        length, loss = drift(batch, real[places % len(real)])
        return length + loss - loss.detach()

    def scaled(self, distance: Tensor) -> Tensor:
        """The ``distance``, a scalar, as it is: L is of unit steps."""
        return distance

    def remember(self, batch: Tensor, good: Tensor) -> None:
        """Go on to other real images."""
        after = (self.place + len(batch)) % len(self.get_buffer("real"))
        self.place = torch.where(good, after, self.place)


def drift(samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """mean V^2, without gradient, and L, both scalars; of (..., B, d) and (..., R, d).

    Leading dimensions are sets of their own with one unit of length.
    """
    own, count = samples.detach(), samples.shape[-2]
    points = torch.cat((own, real), dim=-2)
    apart = torch.cdist(own, points).clamp_min(1e-4)
    mean = apart.mean()
    unit = (mean / samples.shape[-1] ** 0.5).clamp_min(1e-3)
    apart = apart / mean.clamp_min(1e-3)
    apart.diagonal(dim1=-2, dim2=-1).add_(100.0)  # a sample is no neighbour of itself
    length, step = mean.new_zeros(()), torch.zeros_like(own)
    for temperature in _TEMPERATURES:
        near = torch.softmax(-apart / temperature, -1) * torch.softmax(-apart / temperature, -2)
        near = near.clamp_min(1e-6).sqrt()
        away, toward = near[..., :count], near[..., count:]
        parts = (-away * toward.sum(-1, keepdim=True), toward * away.sum(-1, keepdim=True))
        pull = torch.cat(parts, dim=-1)
        field = (pull @ points - pull.sum(-1, keepdim=True) * own) / unit
        square = field.square().mean()
        length, step = length + square, step + field / square.clamp_min(1e-8).sqrt()
    return length, ((samples - own) / unit - step).square().mean()


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
        ValueError: mmd or drift without rows of real images.
    """
    if term.distance == "fd":
        return FrechetLoss(term, real)
    if real.rows is None or len(real.rows) < 2:
        raise ValueError(
            f"objective.sets: {term.distance} needs feature rows of real images: make the "
            "reference with `ucgm reference` and its --num-rows"
        )
    return (KernelLoss if term.distance == "mmd" else DriftLoss)(term, real.rows)
