"""Convergence: T3 (Gaussian) and T5 (mixture) for every solver, and what does not converge faster.

Orders are observed between 0.9 and 0.2 of the path, at the last time of the grid, because the step
to the data is of order one for most solvers.  The first step of a method with a history is of
order one and the second of order two, so these two are short: h^2 and h^(4/3).
"""

import pytest
import torch

from tests.sampler.oracles import ORACLES, end_error, gaussian_map, inner_error, observed_order
from tests.test_transport import MU, S
from ucgm.sampler import NAMED, Churn, Grid, Restart, Sampler
from ucgm.transport import EDM, VP, Linear, Trig

PATHS = [Linear(), Trig(), VP("v"), EDM()]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


def inner_grid(steps, first=0.9, last=0.2):
    h = (first - last) / steps
    second = first - h**2
    third = second - h ** (4 / 3)
    rest = torch.linspace(third, last, steps - 2, dtype=torch.float64).tolist()
    return Grid(explicit=(first, second, *rest))


def inner_order(path, settings, oracle):
    errors = [
        inner_error(path, Sampler(path, n, **settings, grid=inner_grid(n)), oracle)
        for n in (24, 48, 96)
    ]
    return observed_order(errors)


ADAMS = [
    {"solver": "adams", "order": order, "variable": variable, "time_variable": time_variable}
    for order, variable, time_variable in [
        (1, "velocity", "time"),
        (2, "velocity", "time"),
        (2, "velocity", "log_snr"),
        (2, "noise", "sigma"),
        (2, "noise", "time"),
        (2, "data", "log_snr"),
        (2, "data", "sigma"),
        (3, "velocity", "time"),
        (3, "noise", "time"),
        (3, "data", "log_snr"),
        (4, "velocity", "time"),
    ]
]
ROWS = [
    (1, {}),
    (2, {"order": 2}),
    (1, {"extrapolation": 0.5}),
    (2, {"solver": "adams", "extrapolation": 0.5}),
    (2, {"solver": "adams", "order": 2, "variable": "data", "time_variable": "log_snr",
         "integration": "midpoint"}),
    *((row["order"], row) for row in ADAMS),
    *((2, {"solver": "heun", "variable": v}) for v in ("velocity", "noise", "data")),
    (2, {"solver": "unipc", "variable": "velocity"}),
    (3, {"solver": "unipc", "order": 2, "variable": "data", "time_variable": "log_snr"}),
    (3, {"solver": "unipc", "order": 2, "variable": "noise", "time_variable": "sigma"}),
    (4, {"solver": "unipc", "order": 3, "variable": "velocity"}),
]  # fmt: skip


@each_path
@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize(
    "order, settings",
    ROWS,
    ids=lambda v: str(v) if isinstance(v, int) else "-".join(str(x) for x in v.values()) or "ddim",
)
def test_order(path, oracle, order, settings):
    rate = inner_order(path, settings, oracle)
    assert rate > order - 0.35, rate
    if settings == {"extrapolation": 0.5}:
        assert rate < 1.3  # the published form does not keep the state: no gain in order


def test_full_extrapolation_does_not_converge():
    errors = [end_error(Linear(), Sampler(Linear(), n, extrapolation=1.0)) for n in (40, 160)]
    assert min(errors) > 5 * end_error(Linear(), Sampler(Linear(), 40))


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("name", ["ab2", "ucgm_state", "ipndm", "deis", "heun", "ucgm_heun"])
def test_samples_converge_at_order_two_up_to_the_data(name, oracle):
    settings = {**NAMED[name], "grid": Grid(gap=(0.05, 0.0))}
    if name in ("ipndm", "deis"):
        settings["order"] = 2
    errors = [end_error(Linear(), Sampler(Linear(), n, **settings), oracle) for n in (40, 80, 160)]
    assert observed_order(errors) > 1.8


def test_state_preserving_form_is_far_more_accurate_at_equal_nfe():
    grid = Grid(gap=(0.05, 0.0))
    published = end_error(Linear(), Sampler(Linear(), 40, extrapolation=0.5, grid=grid))
    kept = Sampler(Linear(), 40, solver="adams", extrapolation=0.5, grid=grid)
    assert end_error(Linear(), kept) < published / 8


def test_extrapolation_one_half_is_adams_bashforth_two():
    state = Sampler(Trig(), 9, solver="adams", extrapolation=0.5).plan()
    assert state == Sampler(Trig(), 9, solver="adams", order=2).plan()


def moments(path, sampler):
    """Exact (mean, variance) of the samples of Gaussian data, from the plan alone.

    Every state is affine in the noise: a vector of coefficients of 1, z, eps_0, eps_1, ...
    """
    plan = sampler.plan()
    network, one = ORACLES["gaussian"][0](path), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    ends = [gaussian_map(path, v * one, 0.0, plan[0].t) for v in (MU, MU + S)]
    x = torch.zeros(len(plan) + 2, dtype=torch.float64)
    x[:2] = torch.stack((ends[0], ends[1] - ends[0])).flatten()
    known = []
    for i, step in enumerate(plan):
        t = torch.tensor([step.t], dtype=torch.float64)
        offset = network(0 * one, t).item()
        if step.second is None:
            prediction = (network(one, t).item() - offset) * x
            prediction[0] += offset
        else:
            prediction = jump_field(path, x, step)
        known.insert(0, (x, prediction))
        x = sum(a * u + b * f for (a, b), (u, f) in zip(step.weights, known, strict=False))
        x[2 + i] += step.noise
    return float(x[0]), float(x[1:].square().sum())


def jump_field(path, x, step):
    """The exact F(x, t, s) of the Gaussian flow map, on coefficients."""
    t, s = (torch.tensor([v], dtype=torch.float64) for v in (step.t, step.second))
    a, b = (float(v) for v in path.map(t, s))
    unit = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(-1, 1)
    offset, end = gaussian_map(path, unit, step.t, step.second).flatten().tolist()
    jumped = (end - offset) * x
    jumped[0] += offset
    return (jumped - a * x) / b


STOCHASTIC = [
    (1, {"noise": "ddim", "stochasticity": 1.0}),
    (1, {"noise": "ddim", "stochasticity": 0.5}),
    (1, {"noise": "auto", "stochasticity": 1.0}),
    (1, {"solver": "euler_maruyama", "stochasticity": 1.0}),
    (1, {"solver": "heun", "variable": "noise", "churn": Churn(8.0, (0.1, 0.8))}),
    (2, {"solver": "heun", "restart": Restart((0.2, 0.5), 2, 6)}),
]


@pytest.mark.parametrize("path", [Linear(), Trig(), VP("v")], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "order, settings",
    STOCHASTIC,
    ids=lambda v: str(v) if isinstance(v, int) else "-".join(str(x) for x in v.values())[:40],
)
def test_stochastic_solvers_converge_in_distribution(path, order, settings):
    errors = []
    for n in (40, 80, 160):
        row = dict(settings)
        if "restart" in row:
            row["restart"] = Restart((0.2, 0.5), 2, n // 4)
        mean, variance = moments(path, Sampler(path, n, grid=Grid(gap=(0.05, 0.002)), **row))
        errors.append(abs(mean - MU) + abs(variance - S**2))
    # An end gap of 0.002 leaves an error of its own, of the size of the noise there.
    assert errors[-1] < 0.03
    assert errors[-1] < 5e-4 or observed_order(errors) > order - 0.4, errors


@pytest.mark.parametrize("path", [Linear(), Trig(), VP("v"), EDM()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("stochasticity", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_jumps_of_an_exact_flow_map_are_exact(path, stochasticity, steps):
    sampler = Sampler(path, steps, solver="jump", stochasticity=stochasticity)
    mean, variance = moments(path, sampler)
    assert abs(mean - MU) < 1e-9 and abs(variance - S**2) < 1e-9
