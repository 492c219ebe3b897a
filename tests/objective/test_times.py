"""Laws of time against the distribution functions they stand for."""

import pytest
import torch

from ucgm.objective.destinations import Dyadic, SortedPair
from ucgm.objective.times import Beta, LogitNormal, Uniform
from ucgm.transport import Linear

U = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)


def beta_cdf(t, a, b, nodes=200_001):
    """Regularised incomplete beta function by quadrature in w, t = sin(w)^2."""

    def integral(upper):
        w = torch.linspace(0, 1, nodes, dtype=torch.float64) * upper
        middle = 0.5 * (w[1:] + w[:-1])
        return (middle.sin() ** (2 * a - 1) * middle.cos() ** (2 * b - 1)).mean() * upper

    return integral(torch.asin(t.sqrt())) / integral(torch.tensor(torch.pi / 2))


@pytest.mark.parametrize("a, b", [(2.4, 2.4), (3.5, 3.5), (0.8, 1.0), (1.0, 2.0), (0.7, 0.9)])
def test_beta_quantiles_invert_the_distribution_function(a, b):
    u = U[::97]
    t = Beta(a, b).quantile(u, Linear())
    back = torch.stack([beta_cdf(v, a, b) for v in t])
    torch.testing.assert_close(back, u, rtol=0, atol=2e-6)


def test_beta_scale_is_clipped():
    t = Beta(3.5, 3.5, 1.2).quantile(U, Linear())
    assert t.max() == 1.0 and t.min() > 0


def test_logit_normal_and_uniform():
    t = LogitNormal(-0.4, 1.3).quantile(U, Linear())
    normal = torch.special.ndtr((torch.logit(t) + 0.4) / 1.3)
    torch.testing.assert_close(normal, U)
    assert torch.equal(Uniform().quantile(U, Linear()), U)


def test_bad_shape():
    with pytest.raises(ValueError, match="above 0"):
        Beta(0.0, 1.0)
    with pytest.raises(ValueError, match="0.3 or more where neither is 1"):
        Beta(0.2, 0.4)
    with pytest.raises(ValueError, match="equal must be at most 1"):
        SortedPair(75.0)
    with pytest.raises(ValueError, match="share must be at least 0"):
        Dyadic(share=-0.1)
    with pytest.raises(ValueError, match="levels must be at least 1"):
        Dyadic(levels=0)
