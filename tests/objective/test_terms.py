"""Draws and terms: closed forms (T3, T6), purity (T10 to T12), fields, passes and bad input."""

import pytest
import torch
from torch import nn

from tests.test_transport import MU, TRANSPORTS, S, gaussian_estimates, gaussian_field
from ucgm.objective import Draw, preset
from ucgm.objective.destinations import GapFirst, SortedPair
from ucgm.objective.residual import (
    difference_tangent,
    finite_tangent,
    jvp_tangent,
)
from ucgm.runtime.randomness import RowRandom
from ucgm.transport import Linear, Trig

each_transport = pytest.mark.parametrize("path", TRANSPORTS, ids=str)
F64 = torch.float64
TERMINAL = {"terminal": True, "two_time": True, "tangent": "jvp"}


def numbers(n=12, seed=0, low=0.05, high=0.95):
    g = torch.Generator().manual_seed(seed)
    x = MU + S * torch.randn(n, 1, 2, 2, generator=g, dtype=F64)
    z = torch.randn(n, 1, 2, 2, generator=g, dtype=F64)
    t = low + (high - low) * torch.rand(n, generator=g, dtype=F64)
    return x, z, t


def optimal_consistency(path):
    """F whose flow map to the data is the Gaussian probability flow (T3)."""

    def evaluate(x, t):
        alpha, sigma, *_ = (c.reshape(-1, 1, 1, 1) for c in path.coefficients(t))
        deviation = torch.sqrt(sigma**2 + alpha**2 * S**2)
        wanted = MU + S / deviation * (x - alpha * MU)
        a, b = (c.reshape(-1, 1, 1, 1) for c in path.map(t, torch.zeros_like(t)))
        return (wanted - a * x) / b

    return evaluate


@each_transport
class TestGaussianFlowHasNoResidual:
    def setup_method(self):
        self.x, self.z, self.t = numbers()
        self.s = torch.zeros_like(self.t)

    def at(self, path):
        x_t = path.mix(self.x, self.z, self.t)
        return x_t, gaussian_field(path, x_t, self.t), optimal_consistency(path)

    def test_jvp(self, path):
        x_t, field, evaluate = self.at(path)
        tangent = jvp_tangent(path, evaluate, x_t, self.t, self.s, field)
        assert tangent.abs().max() < 1e-10

    def test_central_difference_is_second_order(self, path):
        x_t, field, evaluate = self.at(path)
        errors = [
            difference_tangent(path, evaluate, x_t, self.t, self.s, field, d).abs().max().item()
            for d in (0.02, 0.01, 0.005)
        ]
        assert errors[2] < 0.05
        assert 3.5 < errors[0] / errors[1] < 4.5 and 3.5 < errors[1] / errors[2] < 4.5

    def test_finite_anchor_on_the_flow(self, path):
        """Any anchor reached along the flow itself (not along the tangent) is consistent."""
        x_t, _, evaluate = self.at(path)
        m = 0.5 * self.t
        from tests.test_transport import gaussian_flow

        a, b = (c.reshape(-1, 1, 1, 1) for c in path.map(self.t, m))
        chord = (gaussian_flow(path, x_t, self.t, m) - a * x_t) / b
        tangent = finite_tangent(
            path, evaluate(x_t, self.t), evaluate, x_t, (self.t, self.s, m), chord
        )
        assert tangent.abs().max() < 1e-10


@each_transport
def test_expected_gradient_vanishes_at_the_gaussian_optimum(path):
    """T2: at the conditional mean the residual is uncorrelated with every function of x_t."""
    x, z, t = numbers(200_000, low=0.3, high=0.7)
    objective = preset("flow_matching", transport=path, label_dropout=0.0)
    shift = torch.zeros((), dtype=F64, requires_grad=True)
    slope = torch.zeros((), dtype=F64, requires_grad=True)

    def network(x_t, time, y):
        return gaussian_field(path, x_t, time) + shift + slope * x_t

    terms = objective.terms(network, Draw(x, None, z, t))
    gradients = torch.autograd.grad(terms.loss, (shift, slope))
    noise = 2 * (terms.prediction - terms.target).std() / terms.target.numel() ** 0.5
    assert all(abs(g) < 5 * noise * 1.5 for g in gradients)


def test_the_limit_of_a_draw_by_hand_needs_no_anchor():
    """m = t under ``forward``, which makes anchors of its own, is the central difference."""
    x, z, t = numbers()

    def network(x_t, time, y, s):
        return torch.tanh(x_t + torch.sin(3 * time + s).reshape(-1, 1, 1, 1))

    targets = [
        preset("meanflow", field="data", tangent=tangent)
        .terms(network, Draw(x, None, z, t, 0.3 * t, m=t))
        .target
        for tangent in ("forward", "central")
    ]
    assert torch.equal(*targets)


def test_finite_anchor_tends_to_the_derivative():
    """T6: G of the lambda family goes to the jvp one as lambda goes to 1."""
    x, z, t = numbers()
    path, s = Trig(), torch.zeros_like(t)
    x_t, field = path.mix(x, z, t), path.target(x, z, t)

    def evaluate(v, time):
        return torch.tanh(v * 0.7 + torch.sin(3 * time).reshape(-1, 1, 1, 1))

    limit = jvp_tangent(path, evaluate, x_t, t, s, field)
    errors = []
    for ratio in (0.99, 0.999, 0.9999):
        m = ratio * t
        tangent = finite_tangent(path, evaluate(x_t, t), evaluate, x_t, (t, s, m), field)
        errors.append((tangent - limit).abs().max().item())
    assert errors[2] < 2e-3 and 8 < errors[0] / errors[1] < 12


class Net(nn.Module):
    """A small real network with dropout."""

    def __init__(self, dropout=0.0, classes=5):
        super().__init__()
        self.embed = nn.Embedding(classes + 1, 8)
        self.body = nn.Sequential(
            nn.Linear(13, 32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, 4)
        )
        self.seen = []

    def forward(self, x, t, y):
        flat = torch.cat((x.flatten(1), t[:, None].to(x), self.embed(y).to(x)), 1)
        out = self.body(flat).reshape(x.shape)
        self.seen.append((len(x), y.tolist(), out.detach().clone()))
        return out


PRESETS = ["flow_matching", "ucgm_multi", "ucgm_few"]


def batch(n=16):
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 1, 2, 2, generator=g), torch.randint(0, 5, (n,), generator=g)


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_is_modified(name):
    """T11."""
    x, y = batch()
    objective = preset(name)
    network = Net()
    before = x.clone(), y.clone()
    draw = objective.draw(x, y, 5, torch.Generator().manual_seed(0))
    copies = [v.clone() for v in (draw.x, draw.y, draw.z, draw.t, draw.s)]
    objective.terms(network, draw, target=network, teacher=network)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    for value, copy in zip((draw.x, draw.y, draw.z, draw.t, draw.s), copies, strict=True):
        assert torch.equal(value, copy)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dropout", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 7])
def test_no_row_or_every_row_dropped(name, dropout, n):
    """T12: also with a batch of one; no label is nulled that was not dropped."""
    x, y = batch(n)
    objective = preset(name, label_dropout=dropout)
    draw = objective.draw(x, y, 5, torch.Generator().manual_seed(0))
    assert draw.dropped.all() if dropout else not draw.dropped.any()
    assert torch.equal(draw.y, torch.full_like(y, 5) if dropout else y)
    network = Net()
    terms = objective.terms(network, draw, target=network, teacher=network)
    assert torch.isfinite(terms.loss)
    terms.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_all_passes_of_a_sample_share_one_dropout_mask():
    """T10: passes are bit-equal and the global generator advances as by one pass."""
    x, y = batch()
    objective = preset("ucgm_multi", label_dropout=0.0, enhancement_interval=(0.0, 1.0))
    network = Net(dropout=0.5).train()
    draw = objective.draw(x, torch.full_like(y, 5), 5, torch.Generator().manual_seed(0))
    torch.manual_seed(11)
    objective.terms(network, draw, target=network)
    after = torch.get_rng_state()
    assert len(network.seen) == 2
    assert torch.equal(network.seen[0][2], network.seen[1][2])
    torch.manual_seed(11)
    network(draw.x, draw.t, draw.y)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("tangent", ["jvp", "central"])
def test_single_point_data_is_consistent(tangent):
    """T12: with one data point and its exact field, G = 0 and the target is F itself."""
    point = torch.tensor([0.3, -0.2, 1.1, 0.4], dtype=F64).reshape(1, 1, 2, 2)
    x = point.expand(9, 1, 2, 2)
    z, t = numbers(9)[1:]
    path = Linear()

    def network(x_t, time, y):
        return (x_t - point) / time.reshape(-1, 1, 1, 1)

    objective = preset("ucgm_few", field="data", tangent=tangent, pseudo_huber_c=None)
    terms = objective.terms(network, Draw(x, None, z, t))
    assert terms.loss < 1e-20
    for ratio in (0.3, 0.9):
        partial = preset("ucgm_paper", consistency_ratio=ratio, field="data", pseudo_huber_c=None)
        assert partial.terms(network, Draw(x, None, z, t)).loss < 1e-20
    assert path == objective.transport


def test_rows_skip_the_passes_they_do_not_need():
    """The EMA pass of ``enhanced`` runs on enhanced and dropped rows alone."""
    x, y = batch()
    objective = preset("ucgm_multi", enhancement_interval=(0.0, 0.5))
    draw = objective.draw(x, y, 5, RowRandom.for_rows(0, 0, torch.arange(16)))
    online, ema = Net(), Net()
    objective.terms(online, draw, target=ema)
    needed = int(((draw.t < 0.5) | draw.dropped).sum())
    assert 0 < needed < 16
    assert len(online.seen) == 1 and [seen[0] for seen in ema.seen] == [needed]
    assert set(ema.seen[0][1]) == {5}
    off = preset("ucgm_multi", enhancement_ratio=0.0)
    ema.seen.clear()
    off.terms(online, draw, target=ema)
    assert not ema.seen


@each_transport
def test_guidance_in_training_leaves_x_t_unchanged(path):
    """T7: every (x*, z*) of the field mixes to the same x_t."""
    x, z, t = numbers()
    x_t, field = path.mix(x, z, t), torch.randn_like(x)
    torch.testing.assert_close(path.mix(*path.split(x_t, field, t), t), x_t)


def test_a_batch_may_be_cut_anywhere():
    x, y = batch()
    objective = preset("ucgm_multi")
    whole = objective.draw(x, y, 5, RowRandom.for_rows(1, 2, torch.arange(16)))
    part = objective.draw(x[4:9], y[4:9], 5, RowRandom.for_rows(1, 2, torch.arange(4, 9)))
    for name in ("y", "z", "t", "s", "dropped"):
        assert torch.equal(getattr(whole, name)[4:9], getattr(part, name))


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"consistency_ratio": 1.2}, "consistency_ratio"),
        ({"label_dropout": -0.1}, "label_dropout"),
        ({"enhancement_interval": (0.2, 1.2)}, "enhancement_interval"),
        ({"tangent_step": 0.0}, "tangent_step"),
        ({"field": "nonsense"}, "field"),
        ({"terminal": True, "two_time": True}, "tangent: jvp"),
        ({**TERMINAL, "destination": SortedPair(), "flow_anchor": 1.0}, "flow_anchor"),
        ({**TERMINAL, "destination": GapFirst()}, "flow_anchor_law"),
        (TERMINAL, "SortedPair or Apart"),
        ({"log_loss": 0.01}, "log_variance: true"),
        ({"over_scale": True}, "set guidance_range"),
        ({"consistncy_ratio": 0.5}, "consistncy_ratio"),
        ({"tangent": "backward"}, "tangent must be one of central"),
        ({"step_rule": "nonsense"}, "step_rule must be one of one"),
        ({"time_weight": "nonsense"}, "time_weight must be one of cosine"),
        ({"anchor_schedule": "nonsense"}, "anchor_schedule must be one of"),
        ({"compose_steps": 0}, "compose_steps must be at least 1"),
        ({"clamp": -1.0}, "clamp must be above 0"),
        ({"normalize": 0.0}, "normalize must be above 0"),
        ({"pseudo_huber_c": -1.0}, "pseudo_huber_c must be at least 0"),
        ({"field": "scaled", "enhancement_ratio": 0.0}, "divides by enhancement_ratio"),
        ({"matching": 1.0}, "destination to TwinFlowSplit"),
        ({"time_weight": "gap"}, "gap between t and its anchor"),
    ],
)
def test_bad_settings(settings, word):
    with pytest.raises(ValueError, match=word):
        preset("ucgm_few", **settings)


@pytest.mark.parametrize("setting", [{"clamp": 1.0}, {"own_velocity": True}, {"step_rule": "ucgm"}])
def test_a_terminal_velocity_refuses_what_it_would_ignore(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is about G"):
        preset("terminal_velocity", **setting)


def test_unknown_preset_and_missing_teacher():
    with pytest.raises(ValueError, match="flow_matching"):
        preset("flow_machting")
    x, y = batch()
    objective = preset("ucgm_few")
    with pytest.raises(ValueError, match="teacher"):
        objective.terms(Net(), objective.draw(x, y, 5))


def test_gaussian_estimates_are_what_the_split_of_the_field_gives():
    x, z, t = numbers()
    path = Linear()
    x_t = path.mix(x, z, t)
    split = path.split(x_t, gaussian_field(path, x_t, t), t)
    for mine, closed in zip(split, gaussian_estimates(path, x_t, t), strict=True):
        torch.testing.assert_close(mine, closed)
