"""A solver as data: the list of network evaluations and the update after each.

Both estimates x_hat and z_hat are linear in the state x and the prediction F, so every solver is
a list of evaluations i at (x_i, t_i), each followed by

    x_{i+1} = sum_j (a_j x_{i-j} + b_j F_{i-j}) + n eps

with scalars computed here once, in float64.  A predictor and its corrector are two entries: the
corrector refers to the predictor's state and prediction as j = 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ucgm.transport import Coefficients, Transport

Pair = tuple[float, float]


class Step(NamedTuple):
    """One network evaluation at time ``t`` and the update to time ``s``.

    weights: (a_j, b_j) on the state and prediction of this evaluation, the one before, ...;
    noise: coefficient n of fresh noise; remember: whether later entries may refer to it.
    """

    t: float
    s: float
    weights: tuple[Pair, ...]
    noise: float = 0.0
    remember: bool = True


def _from_estimates(at: Coefficients, on_x_hat: Tensor, on_z_hat: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) with a x + b F = on_x_hat x_hat + on_z_hat z_hat at the times of ``at``."""
    d = at.determinant
    a = (on_z_hat * at.alpha_pred - on_x_hat * at.sigma_pred) / d
    b = (on_x_hat * at.sigma - on_z_hat * at.alpha) / d
    return a, b


def ucgm_plan(
    transport: Transport,
    times: Tensor,
    order: int,
    stochasticity: float,
    extrapolation: float,
) -> list[Step]:
    """UCGM-S as published (arXiv 2505.07447, algorithm 2).

    x_hat and z_hat are extrapolated along their last difference from the third evaluation on, the
    noise is partly fresh, and order 2 corrects by the trapezoid of z_hat in u = sigma / alpha.  The
    sample is x_hat of the last evaluation.

    Args:
        transport: path and prediction.
        times: (N + 1,) float64 falling times, the last one 0.
        order: 1 or 2.
        stochasticity: share r of the noise's variance that is fresh, in [0, 1].
        extrapolation: kappa.
    """
    at = transport.coefficients(times[:-1])
    to = transport.coefficients(times[1:])
    kept = (1.0 - stochasticity) ** 0.5
    own = _from_estimates(at, to.alpha, to.sigma * kept)
    # The same destination read with the estimates of the evaluation before.
    before = Coefficients(*(torch.cat((c[:1], c[:-1])) for c in at))
    last = _from_estimates(before, to.alpha, to.sigma * kept)
    noise = (to.sigma * stochasticity**0.5).tolist()
    first = _from_estimates(at, torch.ones_like(times[:-1]), torch.zeros_like(times[:-1]))

    t = times.tolist()
    own, last, first = (list(zip(*(c.tolist() for c in pair))) for pair in (own, last, first))
    steps: list[Step] = []
    for i in range(len(t) - 1):
        if i == len(t) - 2:
            steps.append(Step(t[i], 0.0, (first[i],)))
            break
        k = extrapolation if i > 1 else 0.0
        weights = [(own[i][0] * (1 + k), own[i][1] * (1 + k))]
        if k:
            weights.append((-k * last[i][0], -k * last[i][1]))
        steps.append(Step(t[i], t[i + 1], tuple(weights), noise[i]))
        if order == 2:
            here, there = (Coefficients(*(c[j] for c in at)) for j in (i, i + 1))
            old = Coefficients(*(c[i - 1] for c in at)) if k else None
            steps.append(Step(t[i + 1], t[i + 1], _trapezoid(here, there, old, k), 0.0, False))
    return steps


def _trapezoid(
    here: Coefficients, there: Coefficients, old: Coefficients | None, k: float
) -> tuple[Pair, ...]:
    """Weights of the corrector: on the predicted point, the point it came from, the one before.

    x_s = (alpha_s / alpha_t) x_t + (sigma_s - alpha_s sigma_t / alpha_t) (z_hat' + z_hat_s) / 2,
    where z_hat' is extrapolated by k.  A start without any signal (start gap 0) has no clock
    sigma / alpha; there the same trapezoid is taken of x_hat in alpha / sigma.
    """
    zero, half = torch.zeros_like(here.alpha), torch.full_like(here.alpha, 0.5)
    if here.alpha > 1e-8:
        ratio = there.alpha / here.alpha
        gain = (there.sigma - ratio * here.sigma) * half
        shares = (zero, gain)
    else:
        ratio = there.sigma / here.sigma
        gain = (there.alpha - ratio * here.alpha) * half
        shares = (gain, zero)
    predicted = _from_estimates(there, *shares)
    start = _from_estimates(here, *(share * (1 + k) for share in shares))
    weights = [predicted, (start[0] + ratio, start[1])]
    if old is not None:
        weights.append(_from_estimates(old, *(-k * share for share in shares)))
    return tuple((float(a), float(b)) for a, b in weights)
