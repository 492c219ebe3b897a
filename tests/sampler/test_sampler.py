"""The loop, its counts, its grids, its convergence, guidance, and bad input."""

import pytest
import torch

from tests.test_transport import TRANSPORTS, gaussian_field, gaussian_flow
from ucgm.randomness import RowRandom
from ucgm.sampler import Grid, Guidance, Guided, Sampler
from ucgm.transport import Linear

each_transport = pytest.mark.parametrize("path", TRANSPORTS, ids=lambda p: type(p).__name__)


def counted(network):
    def wrapper(*args):
        wrapper.calls += 1
        wrapper.rows += len(args[0])
        return network(*args)

    wrapper.calls = wrapper.rows = 0
    return wrapper


def gaussian_network(path):
    return lambda x, t, y=None: gaussian_field(path, x, t)


def gaussian_error(path, sampler):
    """Largest error of the Gaussian flow from the first grid time to the data."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    first = torch.full((len(z),), sampler.plan()[0].t, dtype=torch.float64)
    exact = gaussian_flow(path, z, first, torch.zeros_like(first))
    return (sampler(gaussian_network(path), z) - exact).abs().max().item()


@each_transport
@pytest.mark.parametrize("order", [1, 2])
def test_convergence_order_on_a_gaussian(path, order):
    grid = Grid(gap=(0.01, 0.0)) if order == 1 else Grid(gap=(0.05, 0.0))
    errors = [gaussian_error(path, Sampler(path, n, order, grid=grid)) for n in (40, 80, 160)]
    rate = torch.tensor(errors).log2().diff().neg()[-1]
    # The last update is a first-order jump of one grid step, so its own error is O(h^2) locally.
    assert rate > order - 0.25, errors


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_nfe_is_what_is_called(order, steps):
    network = counted(gaussian_network(Linear()))
    sampler = Sampler(Linear(), steps, order, extrapolation=0.4)
    sampler(network, torch.randn(3, 1, 2, 2))
    assert network.calls == sampler.nfe == len(sampler.plan())


def test_start_without_signal_works_at_order_two():
    sampler = Sampler(Linear(), 6, order=2, extrapolation=0.3, grid=Grid(gap=(0.0, 0.001)))
    out = sampler(gaussian_network(Linear()), torch.randn(2, 1, 2, 2))
    assert torch.isfinite(out).all()


def test_a_sample_does_not_depend_on_its_batch():
    path = Linear()
    sampler = Sampler(path, 4, stochasticity=0.7)

    def draw(indices):
        random = RowRandom.for_samples(9, indices)
        z = random.normal(1, 4, 4)
        return sampler(gaussian_network(path), z, None, random)

    whole = draw(torch.arange(7))
    assert torch.equal(whole[2:5], draw(torch.arange(2, 5)))
    assert not torch.equal(whole[0], whole[1])


def test_full_stochasticity_forgets_the_noise_but_not_the_distribution():
    path = Linear()
    z = torch.randn(4000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = Sampler(path, 200, stochasticity=0.3)(
        gaussian_network(path), z, None, RowRandom.for_samples(0, torch.arange(4000))
    )
    deterministic = Sampler(path, 200)(gaussian_network(path), z)
    assert not torch.allclose(out, deterministic)
    assert abs(deterministic.std() - 0.6) < 0.03


def test_grid():
    times = Grid(gap=(0.001, 0.5)).times(2)
    assert times.tolist() == pytest.approx([0.999, 0.5, 0.0])
    assert Grid(gap=(0.0, 0.0)).times(4).tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert (Grid((1.17, 0.8, 1.1)).times(20).diff() < 0).all()


class TestGuidance:
    x = torch.randn(4, 3, 2, 2)
    y = torch.arange(4)

    @staticmethod
    def network(x, t, y, s=None):
        return x * (y + 1).reshape(-1, 1, 1, 1)

    def test_scale_one_is_the_network_itself(self):
        assert Guidance(1.0).apply(self.network, 9) is self.network
        network = counted(self.network)
        Guided(network, 1.0, null_label=9)(self.x, torch.full((4,), 0.5), self.y)
        assert network.rows == 4

    def test_rule_and_interval(self):
        network = counted(self.network)
        guided = Guided(network, 3.0, (0.2, 0.6), null_label=9)
        cond = self.network(self.x, None, self.y)
        null = self.network(self.x, None, torch.full_like(self.y, 9))
        t = torch.tensor([0.1, 0.2, 0.5, 0.7])
        out = guided(self.x, t, self.y)
        torch.testing.assert_close(out[1:3], (null + 3.0 * (cond - null))[1:3])
        assert torch.equal(out[[0, 3]], cond[[0, 3]])
        network.rows = 0
        Sampler(Linear(), 10)(guided, self.x, self.y)
        inside = sum(0.2 <= step.t <= 0.6 for step in Sampler(Linear(), 10).plan())
        assert 0 < inside < 10 and network.rows == 4 * (10 + inside)

    def test_channels(self):
        t = torch.full((4,), 0.5)
        out = Guided(self.network, 3.0, null_label=9, channels=1)(self.x, t, self.y)
        cond = self.network(self.x, None, self.y)
        assert torch.equal(out[:, 1:], cond[:, 1:]) and not torch.equal(out[:, 0], cond[:, 0])

    def test_bad_input(self):
        with pytest.raises(ValueError, match="interval"):
            Guidance(2.0, (0.5, 1.5))
        with pytest.raises(ValueError, match="classes"):
            Guidance(2.0).apply(self.network, None)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"steps": 0}, "steps"),
        ({"order": 3}, "order"),
        ({"stochasticity": 1.5}, "stochasticity"),
        ({"order": 2, "stochasticity": 0.5}, "stochastic"),
    ],
)
def test_bad_settings(settings, word):
    with pytest.raises(ValueError, match=word):
        Sampler(Linear(), **{"steps": 4, **settings})


def test_bad_grids():
    with pytest.raises(ValueError, match="gap"):
        Grid(gap=(0.5, 0.5))
    with pytest.raises(ValueError, match="warp"):
        Grid(warp=(0.0, 1.0, 1.0))
