"""Fields of several sources, progressive distillation, exit heads: against formulas by hand."""

import pytest
import torch
from torch.nn import functional

from tests.test_transport import TRANSPORTS, gaussian_field
from ucgm.objective import FieldSource, preset
from ucgm.objective.destinations import GridStep
from ucgm.objective.presets import count_passes
from ucgm.objective.times import Uniform
from ucgm.runs.config import from_dict, to_dict
from ucgm.training.teachers import Teacher
from ucgm.transport import Linear, expand

F64 = torch.float64
NULL = 3


class Toy:
    """F = a x + b t + c y, elementwise, and other numbers for its exit head."""

    def __init__(self, a, b, c):
        self.numbers, self.calls = (a, b, c), []

    def __call__(self, x, t, y=None, s=None, heads="map"):
        self.calls.append((heads, None if y is None else y.tolist()))
        label = torch.zeros_like(t) if y is None else y.to(t)
        deep, early = (
            expand(b * t + c * label, x) + a * x
            for a, b, c in (self.numbers, [v + 0.1 for v in self.numbers])
        )
        return {"map": deep, "exit": early, "both": (deep, early)}[heads]


ONLINE, EMA, ONE, TWO = (Toy(0.3 * k, 0.7 - k, 0.2 * k) for k in (1, 2, 3, 4))


def drawn(objective, n=64, labels=True, progress=0.0):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 2, 2, generator=generator, dtype=F64)
    y = torch.arange(n) % NULL if labels else None
    return objective.draw(x, y, NULL if labels else None, generator, progress)


def terms(objective, draw, teachers=(ONE, TWO), progress=0.0):
    return objective.terms(ONLINE, draw, target=EMA, teacher=list(teachers), progress=progress)


def of(*sources, **settings):
    built = tuple(FieldSource(**source) for source in sources)
    return preset("flow_matching", field="sources", sources=built, **settings)


def test_guided_distillation_is_two_sources():
    rule = preset("flow_matching", field="distillation", enhancement_ratio=1.7)
    own = of(dict(weight=1.7), dict(view="null", weight=-0.7))
    draw = drawn(rule)
    torch.testing.assert_close(
        terms(own, draw).target, terms(rule, draw).target, rtol=0, atol=1e-12
    )


def test_every_network_and_view_by_hand():
    """Data, trained network, EMA, one teacher, the mean of both, without label, by exit."""
    own = of(
        dict(network="data", weight=0.4),
        dict(network="online", weight=0.1),
        dict(network="target", weight=0.2),
        dict(teacher=1, weight=0.6),
        dict(weight=0.3),
        dict(teacher=0, view="null", weight=-0.4),
        dict(teacher=0, view="exit", weight=-0.2),
    )
    draw = drawn(own)
    x_t, t, y = own.transport.mix(draw.x, draw.z, draw.t), draw.t, draw.y
    nobody = torch.full_like(y, NULL)
    expected = (
        0.4 * own.transport.target(draw.x, draw.z, t)
        + 0.1 * ONLINE(x_t, t, y)
        + 0.2 * EMA(x_t, t, y)
        + 0.6 * TWO(x_t, t, y)
        + 0.15 * (ONE(x_t, t, y) + TWO(x_t, t, y))
        - 0.4 * ONE(x_t, t, nobody)
        - 0.2 * ONE(x_t, t, y, heads="exit")
    )
    torch.testing.assert_close(terms(own, draw).target, expected, rtol=0, atol=1e-12)


def test_one_target_has_the_gradient_of_mixed_squared_errors():
    own = of(dict(weight=0.9), dict(network="data", weight=0.1))
    draw = drawn(own)
    x_t = own.transport.mix(draw.x, draw.z, draw.t)
    f = torch.randn(x_t.shape, dtype=F64, requires_grad=True)
    teacher = (ONE(x_t, draw.t, draw.y) + TWO(x_t, draw.t, draw.y)) / 2
    data = own.transport.target(draw.x, draw.z, draw.t)
    mixed = 0.9 * (f - teacher).square().sum() + 0.1 * (f - data).square().sum()
    one = (f - terms(own, draw).target).square().sum()
    pair = [torch.autograd.grad(loss, f)[0] for loss in (mixed, one)]
    torch.testing.assert_close(*pair)


def test_weights_that_move_and_intervals():
    own = of(
        dict(weight=1.0, end_weight=0.5, interval=(0.0, 0.5)),
        dict(network="data", weight=0.0, end_weight=0.5, interval=(0.0, 0.5)),
        dict(network="data", interval=(0.5, 1.0)),
    )
    draw = drawn(own)
    data = own.transport.target(draw.x, draw.z, draw.t)
    x_t = own.transport.mix(draw.x, draw.z, draw.t)
    teacher = (ONE(x_t, draw.t, draw.y) + TWO(x_t, draw.t, draw.y)) / 2
    late = expand(draw.t >= 0.5, data)
    for progress, share in ((0.0, 0.0), (0.4, 0.2), (1.0, 0.5)):
        expected = torch.where(late, data, torch.lerp(teacher, data, share))
        found = terms(own, draw, progress=progress).target
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_without_classes_a_source_without_label_is_the_same_pass():
    own = of(dict(teacher=0, weight=1.5), dict(teacher=0, view="null", weight=-0.5))
    draw = drawn(own, labels=False)
    ONE.calls.clear()
    found = terms(own, draw).target
    assert len(ONE.calls) == 1
    x_t = own.transport.mix(draw.x, draw.z, draw.t)
    torch.testing.assert_close(found, ONE(x_t, draw.t), rtol=0, atol=1e-12)


def test_rows_whose_weight_is_zero_cost_nothing():
    own = of(
        dict(teacher=1, interval=(0.75, 1.0)),
        dict(network="data", interval=(0.0, 0.75)),
    )
    assert count_passes(own)["forward"] == pytest.approx(0.25, abs=0.03)
    assert own.teachers == 2 and own.needs_teacher and not own.needs_target
    assert count_passes(of(dict(network="data")))["forward"] == 0


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "needs objective.sources"),
        ([dict(weight=0.9)], "for 0 <= t < 1 at the start of the run they sum to 0.9"),
        ([dict(end_weight=0.5)], "at the end of the run they sum to 0.5"),
        ([dict(interval=(0.0, 0.4))], "for 0.4 <= t < 1 at the start of the run they sum to 0"),
        ([dict(network="data", view="exit")], "data have no view 'exit'"),
        ([dict(network="online", teacher=0)], "online is no teacher"),
    ],
)
def test_bad_sources(sources, message):
    with pytest.raises(ValueError, match=message):
        of(*sources)
    with pytest.raises(ValueError, match="is about the field sources"):
        preset("flow_matching", sources=(FieldSource(),))


def test_too_few_teachers():
    own = of(dict(teacher=2))
    with pytest.raises(ValueError, match="needs a teacher, or 3"):
        terms(own, drawn(own))


def test_sources_are_written_and_read():
    own = of(dict(weight=0.9, interval=(0.0, 1.0)), dict(network="data", weight=0.1))
    assert from_dict(type(own), to_dict(own)) == own
    tree = to_dict(own) | {"sources": [{"netwerk": "data"}]}
    with pytest.raises(ValueError, match=r"sources\[0\].netwerk; did you mean .*network"):
        from_dict(type(own), tree)


@pytest.mark.parametrize("path", TRANSPORTS, ids=str)
@pytest.mark.parametrize("own", TRANSPORTS, ids=str)
def test_a_teacher_on_another_path_says_the_same(own, path):
    """The optimal field of Gaussian data on one path is, moved over, that on any other."""
    teacher = Teacher(lambda x, t, y=None: gaussian_field(own, x, t), own, path)
    # Inside the noise levels that every path has.
    t = torch.linspace(0.05, 0.95, 7, dtype=F64)
    if "EDM" in str(own) + str(path):
        level = torch.linspace(-8.0, 9.0, 7, dtype=F64)
        t = path.time_at_log_snr(level)
    x_t = torch.randn(7, 1, 2, 2, dtype=F64)
    expected = gaussian_field(path, x_t, t)
    torch.testing.assert_close(teacher(x_t, t), expected, rtol=1e-7, atol=1e-7)


def test_a_teacher_of_one_time_is_told_one_time_and_no_guidance():
    teacher = Teacher(lambda x, t, y: x, Linear(), Linear())
    x, t, y = torch.randn(2, 1, 2, 2), torch.rand(2), torch.tensor([0, 1])
    assert torch.equal(teacher(x, t, y, t, guidance=t), x)


HALVING = dict(
    consistency_ratio=0.5,
    step_rule="exact",
    residual_network="teacher",
    field="distillation",
    enhancement_ratio=1.0,
)


@pytest.mark.parametrize("path", TRANSPORTS, ids=str)
def test_a_halved_step_lands_where_two_of_the_teacher_do(path):
    """Progressive distillation (arXiv 2202.00512, algorithm 2): one DDIM step for two."""
    objective = preset("flow_matching", transport=path, destination=GridStep(4), **HALVING)
    assert objective.teachers == 1
    draw = drawn(objective)
    t, s = draw.t, draw.s
    assert torch.equal((4 * t).round() / 4, t) and torch.allclose(t - s, torch.full_like(t, 0.25))
    state, middle = path.mix(draw.x, draw.z, t), s + (t - s) / 2
    x_t = state
    for now, later in ((t, middle), (middle, s)):
        state = path.jump(state, ONE(state, now, draw.y), now, later)
    target = terms(objective, draw, teachers=[ONE]).target
    torch.testing.assert_close(path.jump(x_t, target, t, s), state, rtol=1e-9, atol=1e-9)


def test_grid_steps_are_as_frequent_as_the_law_says():
    u = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    t, s = GridStep(5).pair(u, u[:, None].repeat(1, 3), Uniform(), Linear())
    assert [int((t == k / 5).sum()) for k in range(1, 6)] == [200] * 5
    assert float(s.min()) == 0.0 and torch.allclose(t - s, torch.full_like(t, 0.2))


@pytest.mark.parametrize("target", ["deep", "field"])
def test_an_exit_head_learns_the_deep_output_or_the_field(target):
    objective = preset("flow_matching", exit_head=0.5, exit_target=target)
    draw = drawn(objective)
    x_t = objective.transport.mix(draw.x, draw.z, draw.t)
    a, early = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.3, 0.4))

    def network(x, t, y, heads):
        assert heads == "both"
        return a * x, early * x

    loss = objective.terms(network, draw).loss
    field = objective.transport.target(draw.x, draw.z, draw.t)
    learned = a.detach() * x_t if target == "deep" else field
    expected = functional.mse_loss(a * x_t, field) + 0.5 * functional.mse_loss(early * x_t, learned)
    torch.testing.assert_close(loss, expected)
    pairs = [torch.autograd.grad(value, (a, early)) for value in (loss, expected)]
    torch.testing.assert_close(*pairs)


def test_an_exit_head_needs_the_pass_for_itself():
    for name in ("few_step", "imf", "terminal_velocity"):
        with pytest.raises(ValueError, match="exit_head is trained with one pass"):
            preset(name, exit_head=0.5)
    assert preset("multi_step", exit_head=0.5).network_inputs == {"exit_layer": 1}
