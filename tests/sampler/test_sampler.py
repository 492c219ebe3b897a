"""The loop: counts, memory, independence of the batch, what a plan says, bad input."""

import gc
import math

import pytest
import torch

from tests.sampler.oracles import gaussian_map, gaussian_network, points
from tests.test_transport import TRANSPORTS
from ucgm.runtime.randomness import RowRandom
from ucgm.sampler import NAMED, Churn, Grid, Restart, Sampler
from ucgm.sampler.plan import History, knots, spanning
from ucgm.transport import EDM, VP, Linear, Trig

ROWS = {
    **NAMED,
    "churn": {"solver": "heun", "variable": "noise", "churn": Churn(4.0)},
    "restart": {"solver": "adams", "order": 2, "restart": Restart((0.2, 0.6), 2, 3)},
    "auto": {"noise": "auto", "stochasticity": 1.0},
    "any_step_noisy": {"solver": "jump", "stochasticity": 0.5},
    "ucgm_heun_k": {"order": 2, "extrapolation": 0.4},
}
each_row = pytest.mark.parametrize("name", ROWS)


def two_time(path=Linear()):  # noqa: B008
    """A network that takes a second time and uses it."""
    network = gaussian_network(path)
    return lambda x, t, y=None, s=None: network(x, t) + (0.0 if s is None else 0.1) * x


@each_row
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_nfe_is_what_is_called(name, steps):
    if name == "restart" and steps == 1:
        pytest.skip("there is no inner time to restart from")
    calls = []

    def network(x, t, y=None, s=None):
        calls.append((float(t[0]), s))
        return two_time()(x, t, y, s)

    sampler = Sampler(Linear(), steps, **ROWS[name])
    out = sampler(network, torch.randn(3, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    assert len(calls) == sampler.nfe == len(sampler.plan())
    assert [t for t, _ in calls] == pytest.approx([step.t for step in sampler.plan()], abs=1e-6)
    assert torch.isfinite(out).all()
    twice = ("heun", "edm_heun", "ucgm_heun", "ucgm_heun_k", "churn")
    expected = {"restart": steps + 6} | dict.fromkeys(twice, 2 * steps - 1)
    assert sampler.nfe == expected.get(name, steps)
    assert all((s is not None) == (name.startswith("any_step")) for _, s in calls)


@each_row
def test_the_loop_does_what_the_plan_says(name):
    """The compiled program against the sums of the plan, written out."""
    sampler = Sampler(Trig(), 6, **ROWS[name])
    network, z = two_time(Trig()), points()
    out = sampler(network, z, None, RowRandom.for_samples(1, torch.arange(16)))
    random, x, known = RowRandom.for_samples(1, torch.arange(16)), z, []
    for step in sampler.plan():
        t = torch.full((16,), step.t, dtype=torch.float64)
        s = None if step.second is None else torch.full_like(t, step.second)
        known.insert(0, (x, network(x, t, None, s)))
        x = sum(a * u + b * f for (a, b), (u, f) in zip(step.weights, known, strict=False))
        if step.noise:
            x = x + step.noise * random.normal(1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-11)


@each_row
def test_a_sample_does_not_depend_on_its_batch(name):
    sampler = Sampler(Linear(), 5, **ROWS[name])

    def draw(indices):
        random = RowRandom.for_samples(9, indices)
        return sampler(two_time(), random.normal(1, 4, 4), None, random)

    whole = draw(torch.arange(7))
    assert torch.equal(whole[2:5], draw(torch.arange(2, 5)))
    assert torch.equal(whole[[6, 0]], draw(torch.tensor([6, 0])))
    assert not torch.equal(whole[0], whole[1])


def alive(shape):
    """Number of storages of tensors of a shape."""
    found = (x for x in gc.get_objects() if type(x) is torch.Tensor and x.shape == shape)
    return len({x.untyped_storage().data_ptr() for x in found})


@pytest.mark.parametrize(
    "name, kept", [("ddim", 0), ("ucgm", 1), ("ab2", 1), ("dpmpp_2m", 1), ("dpmpp_3m", 2),
                   ("heun", 1), ("consistency", 0), ("ucgm_heun_k", 4)]
)  # fmt: skip
def test_memory_does_not_grow_with_the_steps(name, kept):
    """What is alive while the network runs: its input, and what a later update refers to."""
    shape = (2, 1, 3, 5)

    def most(steps):
        counts = []

        def network(x, t, y=None):
            counts.append(alive(shape) - before)
            return torch.tanh(x)

        z = torch.randn(shape)
        before = alive(shape)
        Sampler(Linear(), steps, **ROWS[name])(network, z)
        return max(counts)

    gc.collect()
    gc.freeze()  # what was there before does not count, and need not be searched
    try:
        # The caller's z is the first input, later ones are new.
        assert most(5) == most(12) == 1 + kept
    finally:
        gc.unfreeze()


def test_a_history_of_one_estimate_is_kept_as_one_tensor():
    for name in ("ab3", "dpmpp_3m", "deis"):
        history = History(Sampler(VP("v"), 8, **NAMED[name]).plan())
        assert max(len(spanning(list(history.uses(i).values()))) for i in range(8)) == 1
    uses = History(Sampler(Linear(), 8, **NAMED["ab3"]).plan()).uses(2)
    assert spanning(list(uses.values())) == [(0.0, 1.0)]  # the linear path's velocity is F itself


def test_half_precision_predictions_are_summed_in_float32():
    network = two_time()
    z = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    for name in ("ddim", "ab2", "dpmpp_2m"):
        sampler = Sampler(Linear(), 6, **NAMED[name])
        out = sampler(lambda x, t, y=None: network(x, t).bfloat16(), z)
        rounded = sampler(lambda x, t, y=None: network(x, t).bfloat16().float(), z)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, rounded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", TRANSPORTS, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMED if name != "any_step"])
def test_every_solver_runs_on_every_transport(path, name):
    settings = dict(NAMED[name])
    out = Sampler(path, 30, **settings)(
        gaussian_network(path), points(), generator=RowRandom.for_samples(0, torch.arange(16))
    )
    assert torch.isfinite(out).all() and out.abs().max() < 6


def test_start_without_signal():
    """Start gap 0: alpha is 0 at t = 1, so sigma / alpha and the log-SNR are infinite there."""
    rows = {name: ROWS[name] for name in ("heun", "dpmpp_2m", "ipndm", "unipc", "deis", "ab3")}
    for path in (Linear(), Trig()):
        for name, row in rows.items():
            ends = [
                Sampler(path, 12, grid=Grid(gap=(gap, 0.001)), **row)(
                    gaussian_network(path), points()
                )
                for gap in (0.0, 1e-6)
            ]
            # Where the clock is infinite, the history begins one step later.
            tolerance = 1e-4 if name in ("heun", "ab3") else 0.1
            assert (ends[0] - ends[1]).abs().max() < tolerance, (path, name)
        at_order_two = Sampler(path, 12, 2, extrapolation=0.3, grid=Grid(gap=(0.0, 0.001)))
        out = at_order_two(gaussian_network(path), points())
        assert (out - gaussian_map(path, points(), 1.0)).abs().max() < 0.1


def test_ddim_on_the_linear_path_is_euler():
    a, b = (Sampler(Linear(), 7, **NAMED[name]).plan() for name in ("ddim", "euler"))
    for one, two in zip(a, b, strict=True):
        assert one.weights[0] == pytest.approx(two.weights[0], abs=1e-15)


def test_ddpm_is_the_ancestral_sampler():
    """DDPM's posterior of x_s given x_t and x_hat (arXiv 2006.11239, equations 6 and 7)."""
    path = VP("eps")
    plan = Sampler(path, 10, noise="ddim", stochasticity=1.0).plan()
    for step in plan[:-1]:
        t, s = knots(path, [step.t, step.s])
        beta = 1 - (t.alpha / s.alpha) ** 2
        mean_x_hat = s.alpha * beta / t.sigma**2
        mean_x_t = (t.alpha / s.alpha) * s.sigma**2 / t.sigma**2
        a, b = t.estimate(mean_x_hat, 0.0)
        assert step.weights[0] == pytest.approx((a + mean_x_t, b))
        assert step.noise**2 == pytest.approx(s.sigma**2 / t.sigma**2 * beta)


def test_fresh_noise_of_each_rule():
    linear = Linear()
    for step in Sampler(linear, 6, noise="auto", stochasticity=1.0).plan()[:-1]:
        assert step.noise**2 == pytest.approx(min(step.s**2, 2 * step.t * (step.t - step.s)))
    for step in Sampler(linear, 6, stochasticity=0.3).plan()[:-1]:
        assert step.noise**2 == pytest.approx(0.3 * step.s**2)
    for step in Sampler(linear, 6, solver="jump", stochasticity=0.3).plan()[:-1]:
        assert step.noise**2 == pytest.approx(0.3 * step.s**2)


def test_euler_maruyama_ends_as_in_sit():
    """SiT's and REPA's loop on the linear path, with w = 2 t and the last step from 0.04."""
    sampler = Sampler(Linear(), 8, **NAMED["euler_maruyama"])
    network, x = two_time(), points()
    out = sampler(network, x, None, RowRandom.for_samples(0, torch.arange(16)))
    random = RowRandom.for_samples(0, torch.arange(16))
    times = [*torch.linspace(1.0, 0.04, 8, dtype=torch.float64).tolist(), 0.0]
    for t, s in zip(times, times[1:], strict=False):
        v = network(x, torch.full((16,), t, dtype=torch.float64))
        score = -(x + (1 - t) * v) / t
        x = x - (t - s) * (v - t * score)
        if s > 0:
            x = x + math.sqrt(2 * t * (t - s)) * random.normal(1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-12)


def test_churn_raises_the_noise_level_by_its_factor():
    path = Linear()
    plan = Sampler(path, 6, solver="heun", variable="noise", churn=Churn(1.2, (0.1, 0.9))).plan()
    calm = Sampler(path, 6, solver="heun", variable="noise").plan()
    noisy = [step for step in plan if step.noise]
    assert len(noisy) == 4 and len(plan) == len(calm)
    for step, still in zip(plan, calm, strict=True):
        if step.noise:
            before, after = knots(path, [still.s, step.s])
            assert after.ratio == pytest.approx(1.2 * before.ratio)
            assert step.noise / after.alpha == pytest.approx(before.ratio * math.sqrt(1.2**2 - 1))


@pytest.mark.parametrize("churn", [0.0, 3.0])
@pytest.mark.parametrize("path", [EDM(), Linear()], ids=str)
def test_heun_in_noise_is_algorithm_2_of_edm(path, churn):
    """The loop of arXiv 2206.00364 in its own variables: y = x / alpha, u = sigma / alpha."""
    steps, network = 7, gaussian_network(path)
    grid = Grid(gap=(0.01, 0.01), spacing="karras")
    settings = {"solver": "heun", "variable": "noise", "grid": grid}
    sampler = Sampler(path, steps, churn=Churn(churn, (0.0, 0.9), 1.003), **settings)
    out = sampler(network, points(), None, RowRandom.for_samples(0, torch.arange(16)))

    def slope(y, u):
        t = path.time_at_log_snr(torch.full((16,), -2 * math.log(u), dtype=torch.float64))
        alpha = path.coefficients(t).alpha[:, None, None, None]
        return (y - path.split(alpha * y, network(alpha * y, t), t)[0]) / u

    times = grid.times(steps, path)[:-1]
    levels = (-0.5 * path.log_snr(times)).exp().tolist()
    random = RowRandom.for_samples(0, torch.arange(16))
    y = points() / float(path.coefficients(times).alpha[0])
    for i, (u, following) in enumerate(zip(levels, [*levels[1:], 0.0], strict=True)):
        gain = min(churn / steps, 2**0.5 - 1) if i > 0 and times[i] <= 0.9 else 0.0
        if gain > 0:
            noise = random.normal(1, 1, 1, dtype=torch.float64)
            y = y + 1.003 * u * ((1 + gain) ** 2 - 1) ** 0.5 * noise
            u = (1 + gain) * u
        d = slope(y, u)
        ahead = y + (following - u) * d
        if following > 0:
            ahead = y + (following - u) * (d + slope(ahead, following)) / 2
        y = ahead
    torch.testing.assert_close(out, y, rtol=0, atol=1e-6)


def test_restart_goes_over_the_interval_again():
    times = [s.t for s in Sampler(Linear(), 5, restart=Restart((0.2, 0.6), 2, 2)).plan()]
    grid = Grid().times(5).tolist()
    low = grid[3]
    again = [0.6, (0.6 + low) / 2]
    assert times == pytest.approx([*grid[:3], *again, *again, *grid[3:5]])


BAD = [
    ({"steps": 0}, "steps"),
    ({"order": 3}, "order"),
    ({"order": 5, "solver": "adams"}, "1 to 4"),
    ({"solver": "euler2"}, "one of ucgm"),
    ({"solver": "adams", "variable": "score"}, "variable"),
    ({"stochasticity": 1.5}, "stochasticity must be at most 1"),
    ({"stochasticity": -0.1}, "stochasticity must be at least 0"),
    ({"order": 2, "stochasticity": 0.5}, "no stochastic form"),
    ({"solver": "adams", "stochasticity": 0.5}, "not a setting of solver adams"),
    ({"variable": "data"}, "choose the solver from adams"),
    ({"solver": "heun", "extrapolation": 0.5}, "not a setting of solver heun"),
    ({"solver": "adams", "order": 2, "extrapolation": 0.5}, "order 1"),
    ({"solver": "adams", "churn": Churn(1.0)}, "churn"),
]


@pytest.mark.parametrize("settings, message", BAD)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampler(Linear(), **{"steps": 4, **settings})


def test_bad_parts():
    with pytest.raises(ValueError, match="churn.interval"):
        Churn(1.0, (0.5, 1.5))
    with pytest.raises(ValueError, match="churn.amount"):
        Churn(-1.0)
    with pytest.raises(ValueError, match="restart.interval"):
        Restart((0.5, 0.2))
    with pytest.raises(ValueError, match="does not lie within the times"):
        Sampler(Linear(), 2, grid=Grid(explicit=(0.9, 0.5)), restart=Restart((0.1, 0.3))).plan()


def test_bad_labels_and_networks():
    sampler, z = Sampler(Linear(), 2), torch.randn(2, 1, 2, 2)
    network = gaussian_network(Linear())

    class Labelled:
        num_classes = 10

        def __call__(self, x, t, y):
            return network(x, t)

    sampler(Labelled(), z, torch.tensor([0, 10]))
    with pytest.raises(ValueError, match="labels must be 0 to 9, or 10 for no class"):
        sampler(Labelled(), z, torch.tensor([0, 11]))
    with pytest.raises(ValueError, match="labels must be"):
        sampler(Labelled(), z, torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match=r"\(2,\) int64"):
        sampler(Labelled(), z, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="without a learned variance"):
        sampler(lambda x, t, y: torch.cat((x, x), 1), z)
