"""Every preset: what it costs, that it is pure, finite and precise, where its rules converge."""

import copy
import math
import os
import subprocess
import sys

import pytest
import torch

from tests.test_transport import gaussian_flow
from ucgm.nn import DiT
from ucgm.objective import PRESETS, Alignment, Draw, LogVariance, losses, preset
from ucgm.objective.additions import transported
from ucgm.objective.anchors import alpha_of_progress, anchor
from ucgm.objective.destinations import Below, Dyadic, SortedPair, TwinFlowSplit
from ucgm.objective.presets import count_passes
from ucgm.objective.times import ArcTan, LogNormal, Uniform
from ucgm.runtime.randomness import RowRandom
from ucgm.transport import EDM, VP, Linear, Random, Trig, TrigLinear

F64 = torch.float64
NO_SCALE = dict(guidance_range=None, guidance_interval=False, over_scale=False, velocity_head=0.0)
every_preset = pytest.mark.parametrize("name", PRESETS)


def tiny_dit(objective, dtype=torch.float32, depth=2):
    torch.manual_seed(0)
    network = DiT(
        8,
        patch_size=4,
        in_channels=1,
        hidden_size=32,
        depth=depth,
        num_heads=2,
        num_classes=5,
        norm="rms",
        mlp="swiglu",
        qk_norm=True,
        rope=True,
        **objective.network_inputs,
    )
    for p in network.parameters():  # adaLN-zero would make every output 0
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    return network.to(dtype)


def batch(n=12, dtype=torch.float32):
    g = torch.Generator().manual_seed(4)
    x = torch.randn(n, 1, 8, 8, generator=g, dtype=F64).to(dtype)
    return x, torch.randint(0, 5, (n,), generator=g)


def heads(objective):
    return {
        "log_variance": LogVariance(two_time=objective.two_time) if objective.log_variance else None
    }


@every_preset
@pytest.mark.parametrize("n", [1, 12])
@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_pure_and_finite(name, n, dropout):
    """T10 to T12 for every preset: nothing is modified, every gradient is finite."""
    objective = preset(name, label_dropout=dropout)
    x, y = batch(n)
    before = x.clone(), y.clone()
    network, other = tiny_dit(objective), tiny_dit(objective)
    for parameter in other.parameters():  # a teacher says something
        torch.nn.init.normal_(parameter, std=0.02)
    draw = objective.draw(x, y, 5, RowRandom.for_rows(0, 1, torch.arange(n)), 0.6)
    kept = {k: v.clone() for k, v in vars(draw).items() if isinstance(v, torch.Tensor)}
    head = heads(objective)
    terms = objective.terms(network, draw, target=other, teacher=other, progress=0.6, **head)
    terms.loss.backward()
    assert torch.isfinite(terms.loss) and not terms.target.requires_grad
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    assert all(p.grad is None for p in other.parameters())
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert all(torch.equal(getattr(draw, k), v) for k, v in kept.items())
    assert terms.per_sample.shape == (n,) and terms.target.shape == x.shape
    again = objective.terms(network, draw, target=other, teacher=other, progress=0.6, **head)
    assert torch.equal(terms.loss, again.loss)


# (gradient, forward, tangent) passes per row at the presets' defaults, from the laws of the rows.
INSIDE = 0.75 * 0.9
COSTS = {
    **{name: (1, 0, 0) for name in ("ddpm", "v_prediction", "edm", "edm2", "flow_matching")},
    **{name: (1, 0, 0) for name in ("lightningdit", "ot_cfm", "ucgm_paper", "multi_step")},
    "ucgm_multi": (1, INSIDE + 0.1, 0),  # the EMA's unconditional pass, and dropped rows
    "ucgm_lambda": (1, 1, 0),
    "ucgm_few": (1, 2 + 0.9, 0),  # two points of the difference, and the teacher
    "ect": (1, 1, 0),
    "scm": (1, 0, 1),
    "scd": (1, 1, 1),
    "meanflow": (1, 0.25 + 0.9, 0.25),  # guidance on the rows with a label: one pass, or two
    "pixel_meanflow": (1, 0, 0.75),
    "decoupled_meanflow": (1, 0.657 + 0.297, 0.5),  # labelled below t = 0.7, and there s < t
    "imf": (1, 0.5 + 0.749, 0.5),  # its velocity where s < t, and that without label where w > 1
    "alpha_flow": (1, 1 + 0.75, 0.75),
    # The anchor where s < t is later by more than 1e-4, the predictions with label and without.
    "soflow": (1, 0.25 * 0.86 + 0.9 + 0.9 * 0.25, 0),
    "tim": (1, 2 * 0.5, 0),
    "shortcut": (1, 2 * 0.125 + 2 * 0.125 / 7, 0),  # two halves, guided in the smallest
    "terminal_velocity": (2, 0.9 + 1, 1),
    "lsd": (1, 0.25, 0.25),
    "jit": (1, 0, 0),
    "facm": (2, 1 + 0.94, 1),
    "few_step": (2, 2, 1),
}


@pytest.mark.parametrize("name", COSTS)
def test_passes_are_those_that_matter(name):
    counts = count_passes(preset(name), 20_000)
    for kind, wanted in zip(("gradient", "forward", "tangent"), COSTS[name], strict=True):
        assert counts[kind] == pytest.approx(wanted, abs=0.02), kind


def test_skipped_rows_change_nothing():
    """With dropout layers every pass is made for all rows; the result must not depend on it."""
    for name in ("ucgm_multi", "ucgm_few", "meanflow", "rcgm"):
        objective = preset(name)
        x, y = batch(24)
        draw = objective.draw(x, y, 5, RowRandom.for_rows(0, 1, torch.arange(24)))
        network, other = tiny_dit(objective), tiny_dit(objective)
        few = objective.terms(network, draw, target=other, teacher=other)
        network.add_module("idle", torch.nn.Dropout(0.5))  # active, on no path
        network.train()
        all_rows = objective.terms(network, draw, target=other, teacher=other)
        torch.testing.assert_close(few.target, all_rows.target, rtol=1e-4, atol=1e-5)


def test_rows_of_one_time_do_not_repeat_their_pass_under_dropout():
    """Guided MeanFlow: where s = t the gradient pass serves, also if others need a pass."""
    objective = preset("meanflow", guidance_mix=0.5, enhancement_ratio=0.3)
    x, y = batch(24)
    draw = objective.draw(x, y, 5, RowRandom.for_rows(0, 1, torch.arange(24)))
    network = tiny_dit(objective)
    few = objective.terms(network, draw)
    network.add_module("idle", torch.nn.Dropout(0.5))  # active, on no path
    network.train()
    torch.testing.assert_close(few.target, objective.terms(network, draw).target)


@pytest.mark.parametrize("name", ["ucgm_multi", "lightningdit"])
def test_first_gradient_of_a_network_that_says_zero(name):
    """The cosine does not blow up where every DiT starts; it does with the published 1e-8."""
    norms = []
    for settings in ({}, {"cosine_floor": 1e-8}):
        objective = preset(name, **settings)
        network = DiT(8, patch_size=2, hidden_size=32, depth=1, num_heads=2, num_classes=5)
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(8, 4, 8, 8, generator=g), torch.arange(8) % 5
        draw = objective.draw(x, y, 5, RowRandom.for_rows(0, 0, torch.arange(8)))
        objective.terms(network, draw, target=network).loss.backward()
        found = [p.grad for p in network.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(found).item())
    assert norms[0] < 30.0 and norms[1] > 1e6


class TestGuidanceInTrainingConverges:
    """T7: iterating each rule reaches the guidance scale of its row, at its fixed point."""

    cond, null = 2.0, -0.5  # true conditional and unconditional field

    def iterate(self, name, teacher=None, rounds=300, **settings):
        """Fixed point of f <- F*(f) for one labelled and one dropped row."""
        objective = preset("ucgm_paper", consistency_ratio=0.0, field=name, **settings)
        data = torch.tensor([self.cond, self.null], dtype=F64).reshape(2, 1, 1, 1)
        z, t = torch.zeros(2, 1, 1, 1, dtype=F64), torch.full((2,), 0.5, dtype=F64)
        draw = Draw(
            z - data, torch.tensor([0, 1]), z, t, dropped=torch.tensor([False, True]), null_label=1
        )
        values = [0.3, 0.1]

        def table(of):
            return lambda x, t, y, *_: torch.tensor(of, dtype=F64)[y].reshape(-1, 1, 1, 1)

        for _ in range(rounds):
            network = table(values)
            target = objective.terms(
                network, draw, target=network, teacher=teacher and table(teacher)
            ).target
            values = target.flatten().tolist()
        return values

    def scale(self, values):
        assert values[1] == pytest.approx(self.null)
        return (values[0] - self.null) / (self.cond - self.null)

    @pytest.mark.parametrize("zeta", [0.44, 0.67])
    def test_enhanced(self, zeta):
        values = self.iterate("enhanced", enhancement_ratio=zeta)
        assert self.scale(values) == pytest.approx(1 / (1 - zeta))

    def test_enhanced_outside_its_interval(self):
        values = self.iterate("enhanced", enhancement_ratio=0.5, enhancement_interval=(0.6, 0.75))
        assert self.scale(values) == pytest.approx(1.0)

    @pytest.mark.parametrize("omega, kappa", [(0.2, 0.92), (1.5, 0.0), (0.5, 0.5)])
    def test_mixed(self, omega, kappa):
        values = self.iterate("mixed", enhancement_ratio=omega, guidance_mix=kappa)
        assert self.scale(values) == pytest.approx(omega / (1 - kappa))

    def test_scaled(self):
        values = self.iterate("scaled", enhancement_ratio=2.5)
        assert self.scale(values) == pytest.approx(2.5)

    def test_guided_teacher(self):
        k0 = 0.44 / (1 - 0.44)
        guided = [self.cond + k0 * (self.cond - self.null), self.null]
        values = self.iterate("teacher", guided, 1, enhancement_ratio=2.0)
        assert self.scale(values) == pytest.approx(1 + 2.0 * k0)

    def test_unguided_teacher(self):
        plain = [self.cond, self.null]
        values = self.iterate("teacher_cfg", plain, 1, enhancement_ratio=1.3)
        assert self.scale(values) == pytest.approx(2.3)
        values = self.iterate("distillation", plain, 1, enhancement_ratio=1.8)
        assert self.scale(values) == pytest.approx(1.8)

    def test_several_teachers_are_averaged(self):
        objective = preset("ucgm_paper", field="distillation", enhancement_ratio=1.0)
        x = torch.zeros(3, 1, 1, 1, dtype=F64)
        draw = Draw(x, torch.zeros(3, dtype=torch.int64), x, torch.full((3,), 0.5, dtype=F64))
        teachers = [lambda x, t, y: x + 1.0, lambda x, t, y: x + 3.0]
        terms = objective.terms(lambda x, t, y: x.clone(), draw, teacher=teachers)
        assert torch.equal(terms.target, x + 2.0)


def test_matching_term_of_twinflow():
    """The mean over the one-step rows, a quarter of the batch, of the powered velocity gap."""
    x, y = batch(24, F64)
    keys = RowRandom.for_rows(0, 1, torch.arange(24))
    draw = preset("twinflow").draw(x, y, 5, keys)
    network = tiny_dit(preset("twinflow"), F64)
    losses = [
        preset("twinflow", matching=weight).terms(network, draw, target=network).loss
        for weight in (0.0, 1.0)
    ]
    rows = draw.twin.part == 0
    one, zero = torch.ones(len(y), dtype=F64)[rows], torch.zeros(len(y), dtype=F64)[rows]
    z, y, noise, time = draw.z[rows], draw.y[rows], draw.twin.noise[rows], draw.twin.time[rows]
    with torch.no_grad():
        sample = z - network(z, one, y, zero)
        tau = time.reshape(-1, 1, 1, 1)
        again = (1 - tau) * sample + tau * noise
        gap = network(again, -time, y, -time) - network(again, time, y, time)
    q = gap.clamp(-1, 1).square().mean((1, 2, 3))
    assert 0 < rows.sum() < 12
    torch.testing.assert_close(losses[1] - losses[0], (q / (q + 1.01e-6).sqrt()).sum() / (24 / 4))


def test_own_samples_of_twinflow_are_their_own_data():
    """Whatever the field, those rows learn the velocity of the sample they are."""
    objective = preset("twinflow", field="distillation", enhancement_ratio=1.0, clamp=None)
    x, y = batch(32)
    draw = objective.draw(x, y, 5, RowRandom.for_rows(0, 0, torch.arange(32)))
    network = tiny_dit(objective)
    seen = []

    def teacher(x, t, y, s):
        seen.append(t.min().item())
        return torch.full_like(x, 100.0)

    terms = objective.terms(network, draw, target=network, teacher=teacher)
    own = draw.twin.part == 3
    assert own.any() and min(seen) >= 0
    assert terms.target[own].abs().max() < 50 < terms.target[draw.twin.part == 1].abs().max()


def deviations_of_lambda(ratio, s, rounds=4000):
    """T4: c(1) = prod rho(t_k, t_k+1), t_k = lambda^k, on the linear path with N(0, s^2) data."""
    t, c = 1.0, 1.0
    for _ in range(rounds):
        m = ratio * t
        c *= ((1 - t) * (1 - m) * s**2 + t * m) / (t**2 + (1 - t) ** 2 * s**2)
        t = m
    return c * 1.0


@pytest.mark.parametrize(
    "ratio, s, published",
    [(0.5, 1, 0.62001), (0.8, 1, 0.86567), (0.9, 1, 0.93445), (0.99, 1, 0.99356)]
    + [(0.5, 0.5, 0.36479), (0.9, 0.5, 0.47702), (0.99, 0.5, 0.49776)],
)
def test_bias_of_the_lambda_family(ratio, s, published):
    """T4: at the biased fixed point the residual is uncorrelated with x_t, elsewhere it is not."""
    assert deviations_of_lambda(ratio, s) == pytest.approx(published, abs=2e-5)
    table = {}

    def c_of(times):
        result = torch.ones_like(times)
        t = times.clone()
        for _ in range(int(math.log(1e-9) / math.log(ratio))):
            m = ratio * t
            result *= ((1 - t) * (1 - m) * s**2 + t * m) / (t**2 + (1 - t) ** 2 * s**2)
            t = m
        return result

    def network(x, t, y):
        key = round(float(t[0]), 9)
        if key not in table:
            table[key] = c_of(t[:1])
        return x * ((1 - table[key]) / t).reshape(-1, 1, 1, 1)

    n = 200_000
    g = torch.Generator().manual_seed(0)
    x = s * torch.randn(n, 1, 1, 1, generator=g, dtype=F64)
    z = torch.randn(n, 1, 1, 1, generator=g, dtype=F64)
    t = torch.full((n,), 0.7, dtype=F64)
    objective = preset("ucgm_paper", consistency_ratio=ratio, step_rule="exact", clamp=None)
    terms = objective.terms(network, Draw(x, None, z, t))
    residual, x_t = (terms.target - terms.prediction).flatten(), (0.3 * x + 0.7 * z).flatten()
    slope = (residual * x_t).mean() / x_t.square().mean()
    noise = residual.std() / (n**0.5 * x_t.std())
    assert abs(slope) < 4 * noise
    wrong = objective.terms(lambda *a: network(*a) * 0.9, Draw(x, None, z, t))
    wrong = (wrong.target - wrong.prediction).flatten()
    assert abs((wrong * x_t).mean() / x_t.square().mean()) > 8 * noise


def test_mixture_flow_has_no_residual():
    """T5: on a two-mode mixture G = 0 along the marginal field, for the limit and any path."""
    sys.path.insert(0, "scripts")
    import oracle_1d

    from ucgm.objective.residual import difference_tangent

    for path in (Linear(), Trig()):
        t = torch.linspace(0.15, 0.85, 41, dtype=F64)
        x = oracle_1d.quantile(path, torch.linspace(0.03, 0.97, 41, dtype=F64), t)
        s = torch.zeros_like(t)
        field = oracle_1d.mean_field(path, x, t)

        def evaluate(state, time, path=path, s=s):
            flat = state.flatten()
            wanted = oracle_1d.flow(path, flat, time, s)
            a, b = path.map(time, s)
            return ((wanted - a * flat) / b).reshape(state.shape)

        shape = (-1, 1, 1, 1)
        sizes = [
            difference_tangent(path, evaluate, x.reshape(shape), t, s, field.reshape(shape), step)
            .abs()
            .max()
            .item()
            for step in (0.004, 0.002)
        ]
        assert sizes[0] < 0.05 and 3.0 < sizes[0] / sizes[1] < 5.0


# The largest error: of rounding, of differences over 1e-4, of anchors a step along F* before t.
FIXED_POINTS = {
    **{name: 1e-9 for name in ("meanflow", "pixel_meanflow", "decoupled_meanflow", "imf")},
    **{name: 1e-9 for name in ("alpha_flow", "shortcut", "terminal_velocity", "lsd")},
    "tim": 1e-6,
    "rcgm": 5e-3,
    "soflow": 5e-3,
}


@pytest.mark.parametrize("name", FIXED_POINTS)
def test_gaussian_flow_map_is_a_fixed_point_of_two_time_presets(name):
    """T3 through ``terms``: with the exact flow map and the exact field the target is F itself."""
    from tests.test_transport import MU, S, gaussian_field

    path = Linear()

    def network(x, t, y, s):
        same = (t - s).abs() < 1e-9
        gap = torch.where(same, torch.ones_like(t), t - s).reshape(-1, 1, 1, 1)
        jump = (x - gaussian_flow(path, x, t, s)) / gap
        return torch.where(same.reshape(-1, 1, 1, 1), gaussian_field(path, x, t), jump)

    field = {} if name == "shortcut" else {"field": "distillation", "enhancement_ratio": 1.0}
    settings = dict(clamp=None, target_clamp=None, state_clamp=None, tangent_step=1e-4)
    objective = preset(name, **NO_SCALE, **settings, **field)
    x = MU + S * torch.randn(40, 1, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    draw = objective.draw(x, None, None, torch.Generator().manual_seed(1))
    teacher = lambda x, t, y, s: network(x, t, y, t)  # noqa: E731
    terms = objective.terms(network, draw, teacher=teacher, **heads(objective))
    moving = draw.m > draw.s
    error = (terms.target - terms.prediction)[moving].abs().max()
    assert moving.any() and error < FIXED_POINTS[name]


@pytest.mark.parametrize("path", [Linear(), Trig(), TrigLinear(), VP(prediction="v"), Random()])
def test_terminal_velocity_of_the_gaussian_flow_map(path):
    """The exact map ends with the velocity of where it ends, on every path."""
    from tests.test_transport import MU, S, gaussian_field

    def network(x, t, y, s):
        same = (t - s).abs() < 1e-9
        a, b = (c.reshape(-1, 1, 1, 1) for c in path.map(t, s))
        known = (gaussian_flow(path, x, t, s) - a * x) / torch.where(b == 0, 1.0, b)
        return torch.where(same.reshape(-1, 1, 1, 1), gaussian_field(path, x, t), known)

    objective = preset("lsd", transport=path)
    x = MU + S * torch.randn(40, 1, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    draw = objective.draw(x, None, None, torch.Generator().manual_seed(1))
    terms = objective.terms(network, draw, **heads(objective))
    moving = draw.s < draw.t
    torch.testing.assert_close(terms.prediction[moving], terms.target[moving], rtol=0, atol=1e-8)
    assert moving.any() and not moving.all()


@pytest.mark.parametrize("path", [Linear(), Trig(), EDM(), VP(prediction="v")])
def test_terminal_velocity_at_the_data_continues_that_of_its_neighbours(path):
    """Jumps that end exactly at s = 0, as those of Dyadic, or of LogNormal on the path of EDM."""
    objective = preset("lsd", transport=path, log_variance=False)
    x, z = (torch.randn(6, 1, 2, 2, dtype=F64) for _ in range(2))
    t = torch.linspace(0.2, 0.9, 6, dtype=F64)

    def network(x, t, y, s):
        return 0.4 * x + 0.2 * s.reshape(-1, 1, 1, 1)

    at_zero, near = (
        objective.terms(network, Draw(x, None, z, t, torch.full_like(t, s))) for s in (0.0, 1e-9)
    )
    torch.testing.assert_close(at_zero.prediction, near.prediction, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(at_zero.target, near.target, rtol=1e-3, atol=1e-3)


def test_gradient_of_the_terminal_velocity():
    """The gradient goes through the derivative by s, as a difference in the weights says."""
    objective = preset("terminal_velocity", label_dropout=0.0)
    network = tiny_dit(objective, F64)
    x, y = batch(12, F64)
    draw = objective.draw(x, y, None, RowRandom.for_rows(0, 1, torch.arange(12)))
    weights = torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(5))

    def score():
        return (weights * objective.terms(network, draw, target=network).prediction).sum()

    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(score(), parameters)
    torch.manual_seed(6)
    ways = [torch.randn_like(p) for p in parameters]
    slope = sum((g * w).sum().item() for g, w in zip(gradients, ways, strict=True))
    ends = []
    with torch.no_grad():
        for sign in (1e-5, -2e-5):
            for p, way in zip(parameters, ways, strict=True):
                p += sign * way
            ends.append(score().item())
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", ["ucgm_few", "meanflow", "scm", "rcgm", "terminal_velocity"])
@pytest.mark.parametrize("tangent", ["jvp", "central"])
def test_tangent_under_autocast(name, tangent):
    """The change of the target under bf16 autocast is that of float64 to 1 %."""
    if name == "terminal_velocity":
        tangent = "jvp"
    if name == "rcgm":
        tangent = "forward"
    settings = dict(field="data", clamp=None, normalize=None, tangent=tangent)
    objective = preset(name, **settings, **NO_SCALE)
    x, y = batch(16, F64)
    keys = RowRandom.for_rows(0, 3, torch.arange(16))
    changes = []
    for dtype in (F64, torch.float32):
        draw = objective.draw(x.to(dtype), y, None, copy.copy(keys))
        network = tiny_dit(objective, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            terms = objective.terms(network, draw, target=network, **heads(objective))
        moving = draw.s < draw.t
        # F itself may round to bfloat16: what must be precise is the change that is asked of it.
        changes.append((terms.target - terms.prediction).detach()[moving].double())
    error = (changes[1] - changes[0]).norm() / changes[0].norm()
    assert error < 0.01


class TestParts:
    def test_destinations(self):
        u = torch.rand(4000, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
        t = torch.rand(4000, dtype=F64, generator=torch.Generator().manual_seed(1))
        for destination in (Below(), SortedPair(0.75), Dyadic(), TwinFlowSplit()):
            late, s = destination.pair(t, u, Uniform(), Linear())
            assert (s >= 0).all() and (s <= late).all() and (late <= 1).all()
        late, s = SortedPair(0.75).pair(t, u, Uniform(), Linear())
        assert abs((late == s).double().mean() - 0.75) < 0.03
        late, s = Dyadic().pair(t, u, Uniform(), Linear())
        jumps = (late - s)[s < late]
        assert set(jumps.tolist()) == {2.0**-k for k in range(7)}
        assert ((s / (late - s))[s < late] % 1 == 0).all()

    def test_laws_of_noise_levels(self):
        u = torch.linspace(0.01, 0.99, 99, dtype=F64)
        for path in (EDM(), Linear(), Trig()):
            t = LogNormal(-1.2, 1.2).quantile(u, path)
            level = torch.exp(-0.5 * path.log_snr(t))
            normal = torch.special.ndtr((level.log() + 1.2) / 1.2)
            torch.testing.assert_close(normal, u, rtol=0, atol=1e-6)
        t = ArcTan(-0.8, 1.6).quantile(u, Linear())
        normal = torch.special.ndtr((torch.tan(t * torch.pi / 2).log() + 0.8) / 1.6)
        torch.testing.assert_close(normal, u)

    def test_anchors(self):
        def moving(schedule, ratio):
            return preset("edm", anchor_schedule=schedule, consistency_ratio=ratio)

        t = torch.linspace(0.1, 0.95, 50, dtype=F64)
        s = 0.3 * t
        for progress in (0.0, 0.3, 0.7, 1.0):
            for schedule in ("constant", "ect", "alpha"):
                m = anchor(moving(schedule, 0.5), t, s, progress)
                assert (m >= s).all() and (m <= t).all()
        ect = moving("ect", 1.0)
        gaps = [(t - anchor(ect, t, 0 * t, p)).mean().item() for p in (0, 0.3, 0.6, 0.9)]
        assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.05
        assert alpha_of_progress(0.0) == 1.0 and alpha_of_progress(1.0) == 0.0
        assert torch.equal(anchor(moving("alpha", 1.0), t, s, 0.0), s)
        assert torch.equal(anchor(moving("alpha", 1.0), t, s, 1.0), t)

    def test_losses(self):
        error = torch.randn(5, 3, 2, 2, dtype=F64, requires_grad=True)
        q = error.detach().flatten(1).square().mean(1)
        power = losses.power_loss(error, 0.5, 0.3**2, False)
        (one,) = torch.autograd.grad(power.sum(), error)
        (two,) = torch.autograd.grad(losses.pseudo_huber_loss(error, 0.3, False).sum(), error)
        torch.testing.assert_close(one, 2 * two)
        torch.testing.assert_close(losses.power_loss(error, 0.0, 1.0, False), q)
        torch.testing.assert_close(losses.power_loss(error, 0.0, 1.0, True), q * 12)

    def test_learned_variance_learns_the_variance(self):
        torch.manual_seed(0)
        head = LogVariance()
        optimizer = torch.optim.Adam(head.parameters(), 0.02)
        for _ in range(400):
            t = torch.rand(512)
            scale = 0.1 + t
            squares = (scale * torch.randn(512)).square()
            u = head(t, t)
            loss = (squares * torch.exp(-u) + u).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        t = torch.tensor([0.2, 0.5, 0.8])
        torch.testing.assert_close(head(t, t).exp().sqrt(), 0.1 + t, rtol=0.2, atol=0)

    def test_a_variance_of_two_times_is_bounded(self):
        """The residual of a flow map may be 0, where a weight e^-u without bound would explode."""
        head, t = LogVariance(two_time=True), torch.linspace(0.1, 1.0, 64)
        optimizer = torch.optim.Adam(head.parameters(), 1.0)
        for _ in range(200):
            optimizer.zero_grad()
            head(t, 0.5 * t).sum().backward()
            optimizer.step()
        u = head(t, 0.5 * t)
        assert -(128**0.5) <= u.min() and u.max() < -5.0
        assert not torch.equal(head(t, 0.3 * t), u)

    def test_optimal_coupling(self):
        x, z = torch.randn(16, 1, 2, 2), torch.randn(16, 1, 2, 2)
        paired = transported(x, z)
        assert sorted(paired.flatten(1).tolist()) == sorted(z.flatten(1).tolist())
        assert (paired - x).square().sum() < (z - x).square().sum()
        objective = preset("ot_cfm")
        one = objective.draw(x, torch.arange(16) % 5, 5, torch.Generator().manual_seed(0))
        assert torch.equal(one.x, x)

    def test_alignment(self):
        objective = preset("flow_matching", alignment=0.5)
        network = tiny_dit(objective)
        alignment = Alignment(width=32, features=6, grid=2, hidden=16)
        alignment.watch(network.blocks[0])
        x, y = batch(4)
        draw = objective.draw(x, y, 5, torch.Generator().manual_seed(0))
        with pytest.raises(ValueError, match="watch"):
            objective.terms(network, draw, alignment=alignment)
        alignment.target = torch.randn(4, 6, 2, 2)
        with_term = objective.terms(network, draw, alignment=alignment)
        plain = preset("flow_matching").terms(network, draw)
        torch.testing.assert_close(with_term.loss, plain.loss + 0.5 * alignment())
        with_term.loss.backward()
        assert all(p.grad is not None for p in alignment.parameters())
        with pytest.raises(ValueError, match="needs an Alignment module"):
            objective.terms(network, draw)


WORKER = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.objective.test_presets import batch, heads, tiny_dit
from ucgm.objective import preset
from ucgm.runtime.randomness import RowRandom

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)
for name, tangent in (("ucgm_few", "jvp"), ("ucgm_few", "central"), ("meanflow", "jvp"),
                      ("facm", "jvp"), ("ucgm_multi", "central"), ("twinflow", "forward"),
                      ("terminal_velocity", "jvp"), ("lsd", "jvp"), ("imf", "jvp"),
                      ("shortcut", "central"), ("tim", "central_prediction")):
    objective = preset(name, tangent=tangent)
    x, y = batch(16, torch.float64)

    def gradient(network, inner, rows):
        keys = RowRandom.for_rows(0, 1, rows)
        draw = objective.draw(x[rows], y[rows], 5, keys)
        terms = objective.terms(network, draw, target=other, teacher=other, **heads(objective))
        terms.loss.backward()
        return [p.grad.clone() for p in inner.parameters() if p.grad is not None]

    other = tiny_dit(objective, torch.float64)
    alone = tiny_dit(objective, torch.float64)
    whole = gradient(alone, alone, torch.arange(16))
    inner = tiny_dit(objective, torch.float64)
    wrapped = DistributedDataParallel(inner)
    part = gradient(wrapped, inner, torch.arange(16).chunk(world)[rank])
    error = max((a - b).abs().max().item() for a, b in zip(whole, part, strict=True))
    scale = max(a.abs().max().item() for a in whole)
    assert error < 1e-6 * scale, (name, tangent, error, scale)
    if rank == 0:
        print("ok", name, tangent, error / scale, flush=True)
"""


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        + [str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 11
