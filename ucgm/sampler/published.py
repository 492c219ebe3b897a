"""UCGM-S as published (arXiv 2505.07447, algorithm 2), and with it DDIM, DDPM and consistency.

    x' = x_hat + k (x_hat - x_hat_prev),  z' likewise, from the third evaluation on
    x_s = alpha_s x' + sigma_s (sqrt(1 - r) z' + sqrt(r) eps)

k = 0 and r = 0 is DDIM, which on the linear path is Euler; r = 1 is multistep consistency sampling.
With k > 0 the mix alpha_t x' + sigma_t z' is not x_t any more, so this form stays of order one for
every k; `multistep` has the same history in a form that keeps the state.  The sample is x_hat of
the last evaluation.
"""

from collections.abc import Sequence

from ucgm.sampler.plan import SMALL, Knot, Pair, Step, arrival, combined


def ucgm_plan(
    path: Sequence[Knot], order: int, shares: Sequence[float], extrapolation: float
) -> list[Step]:
    """The plan over the knots of ``path``.

    Args:
        path: N + 1 knots at falling times.
        order: 1, or 2 with a trapezoid corrector of z_hat in u = sigma / alpha.
        shares: r of every step.
        extrapolation: k.
    """
    steps: list[Step] = []
    for i, (here, there) in enumerate(zip(path, path[1:], strict=False)):
        alpha, sigma = arrival(there)
        if there.t == 0:
            steps.append(Step(here.t, 0.0, (here.estimate(1.0, 0.0),)))
            break
        k = extrapolation if i > 1 else 0.0
        kept = sigma * (1.0 - shares[i]) ** 0.5
        weights = [combined((1 + k, here.estimate(alpha, kept)))]
        if k:
            # At order 2 the corrector of the step before lies in between.
            weights += [(0.0, 0.0)] * (order - 1)
            weights.append(combined((-k, path[i - 1].estimate(alpha, kept))))
        steps.append(Step(here.t, there.t, tuple(weights), sigma * shares[i] ** 0.5))
        if order == 2:
            old = path[i - 1] if k else None
            steps.append(Step(there.t, there.t, _trapezoid(here, there, old, k)))
    return steps


def _trapezoid(here: Knot, there: Knot, old: Knot | None, k: float) -> tuple[Pair, ...]:
    """Weights of the corrector: on the predicted point, where the step began, two before that.

    x_s = (alpha_s / alpha_t) x_t + (sigma_s - alpha_s sigma_t / alpha_t) (z_hat' + z_hat_s) / 2,
    where z_hat' is extrapolated by k.  A start without any signal (start gap 0) has an
    infinite sigma / alpha; there the same trapezoid is taken of x_hat in alpha / sigma.
    """
    if here.alpha > SMALL:
        ratio = there.alpha / here.alpha
        shares = (0.0, 0.5 * (there.sigma - ratio * here.sigma))
    else:
        ratio = there.sigma / here.sigma
        shares = (0.5 * (there.alpha - ratio * here.alpha), 0.0)
    start = combined((1 + k, here.estimate(*shares)), (ratio, (1.0, 0.0)))
    weights = [there.estimate(*shares), start]
    if old is not None:
        weights += [(0.0, 0.0), combined((-k, old.estimate(*shares)))]
    return tuple(weights)
