"""Guidance: the rule, the interval, the channels, and what it costs."""

import pytest
import torch

from ucgm.nn import DiTConfig
from ucgm.sampler import Autoguided, Guidance, GuidanceInput, Guided, Sampler
from ucgm.transport import Linear

X = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4)


class Counted:
    """A network that counts its rows, and scales by label, second time and guidance."""

    num_classes = 9

    def __init__(self, factor=1.0):
        self.rows, self.factor = 0, factor

    def __call__(self, x, t, y, s=None, guidance=None):
        self.rows += len(x)
        scale = (
            self.factor * (y + 1.0)
            + (0 if s is None else s)
            + (0 if guidance is None else guidance)
        )
        return x * scale.reshape(-1, 1, 1, 1)


def test_scale_one_is_the_network_itself():
    network = Counted()
    assert Guidance(1.0).apply(network, 9) is network
    assert Guidance(1.0, kind="auto").apply(network, 9) is network
    Guided(network, 1.0, null_label=9)(X, torch.full((4,), 0.5), Y)
    assert network.rows == 4


def test_rule_and_interval():
    network = Counted()
    guided = Guided(network, 3.0, (0.2, 0.6), null_label=9)
    cond = network(X, None, Y)
    null = network(X, None, torch.full_like(Y, 9))
    t = torch.tensor([0.1, 0.2, 0.5, 0.7])
    out = guided(X, t, Y)
    torch.testing.assert_close(out[1:3], (null + 3.0 * (cond - null))[1:3])
    assert torch.equal(out[[0, 3]], cond[[0, 3]])
    second = guided(X, t, Y, torch.full((4,), 0.05))
    torch.testing.assert_close(second[0], cond[0] + 0.05 * X[0])


def test_rows_outside_the_interval_are_not_doubled():
    network = Counted()
    Sampler(Linear(), 10)(Guided(network, 3.0, (0.2, 0.6), null_label=9), X, Y)
    inside = sum(0.2 <= step.t <= 0.6 for step in Sampler(Linear(), 10).plan())
    assert 0 < inside < 10 and network.rows == 4 * (10 + inside)


def test_the_interval_is_decided_by_the_plans_time():
    """float32 of 0.3 is above 0.3: a device-side comparison would leave the step out."""
    grid_time = 0.3
    guided = Guided(Counted(), 2.0, (0.0, grid_time), null_label=9)
    assert guided.at(grid_time) == guided.guided
    assert float(torch.tensor(grid_time)) > grid_time
    closed = Guided(Counted(), 2.0, (0.3, 0.6), null_label=9)
    on = [closed.at(t) == closed.guided for t in (0.2999, 0.3, 0.6, 0.6001)]
    assert on == [False, True, True, False]


def test_channels():
    t = torch.full((4,), 0.5)
    for guided in (
        Guided(Counted(), 3.0, null_label=9, channels=1),
        Autoguided(Counted(), Counted(0.5), 3.0, channels=1),
    ):
        out, plain = guided(X, t, Y), Counted()(X, t, Y)
        assert torch.equal(out[:, 1:], plain[:, 1:]) and not torch.equal(out[:, 0], plain[:, 0])


def test_autoguidance():
    network, weak = Counted(), Counted(0.5)
    guided = Guidance(2.5, (0.0, 0.5), kind="auto", guide="run").apply(network, 9, weak)
    t = torch.full((4,), 0.4)
    good, bad = Counted()(X, t, Y), Counted(0.5)(X, t, Y)
    torch.testing.assert_close(guided(X, t, Y), bad + 2.5 * (good - bad))
    network.rows = weak.rows = 0
    Sampler(Linear(), 8)(guided, X, Y)
    inside = sum(step.t <= 0.5 for step in Sampler(Linear(), 8).plan())
    assert network.rows == 4 * 8 and weak.rows == 4 * inside


def test_guidance_as_an_input():
    network = Counted()
    guided = Guidance(2.0, (0.3, 1.0), kind="input").apply(network, None)
    assert isinstance(guided, GuidanceInput)
    t = torch.tensor([0.1, 0.3, 0.5, 0.9])
    out, plain = guided(X, t, Y), Counted()(X, t, Y)
    torch.testing.assert_close(out[0], plain[0])
    torch.testing.assert_close(out[1:], plain[1:] + 2.0 * X[1:])
    network.rows = 0
    Sampler(Linear(), 5)(guided, X, Y)
    assert network.rows == 4 * 5


def test_the_interval_is_an_input_of_a_network_that_has_it():
    """At every time, with no cut; (1 - 1/scale, low, high) is the network's business."""
    seen = []

    class Told(Counted):
        guidance_interval = True

        def __call__(self, x, t, y, s=None, guidance=None):
            seen.append((t[0].item(), guidance))
            return super().__call__(x, t, y, s, None if guidance is None else guidance.sum(1))

    guided = Guidance(2.0, (0.25, 0.75), kind="input").apply(Told(), None)
    t = torch.tensor([0.1, 0.3, 0.5, 0.9])
    torch.testing.assert_close(guided(X, t, Y), Counted()(X, t, Y) + 3.0 * X)
    Sampler(Linear(), 6)(guided, X, Y)
    assert len({time for time, _ in seen}) == 7 and seen[1][0] > 0.9 and seen[-1][0] < 0.2
    assert all(torch.equal(g, torch.tensor([[2.0, 0.25, 0.75]] * 4)) for _, g in seen)


def test_a_network_with_guidance_input_without_it_has_scale_one():
    """Plain and under classifier-free guidance: both of its passes are those of scale 1."""

    class Default(Counted):
        def __call__(self, x, t, y, s=None, guidance=None):
            assert guidance is None
            return super().__call__(x, t, y, s, torch.ones(len(x)))

    t = torch.full((4,), 0.5)
    good, bad = Default()(X, t, Y), Default()(X, t, torch.full_like(Y, 9))
    torch.testing.assert_close(Guidance(1.0, kind="input").apply(Default(), 9)(X, t, Y), good)
    torch.testing.assert_close(Guidance(3.0).apply(Default(), 9)(X, t, Y), bad + 3 * (good - bad))


def test_wrappers_nest():
    """Classifier-free guidance of an autoguided network."""
    inner = Autoguided(Counted(), Counted(0.5), 2.0, (0.0, 0.5))
    outer = Guided(inner, 3.0, (0.4, 1.0), null_label=9)
    for t in (0.2, 0.45, 0.8):
        time = torch.full((4,), t)
        torch.testing.assert_close(outer.at(t)(X, time, Y), outer(X, time, Y))


BAD = [
    ({"interval": (0.5, 1.5)}, "interval"),
    ({"interval": (0.5, 0.2)}, "interval"),
    ({"channels": 0}, "channels"),
    ({"kind": "input", "channels": 3}, "no meaning"),
    ({"kind": "input", "scale": 0.5}, "at least 1"),
]


@pytest.mark.parametrize("settings, message", BAD)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**{"scale": 2.0, **settings})


def test_what_is_missing():
    for nothing in (None, 0):
        with pytest.raises(ValueError, match="classes"):
            Guidance(2.0).apply(Counted(), nothing)
    with pytest.raises(ValueError, match="guidance.guide"):
        Guidance(2.0, kind="auto").apply(Counted(), 9)
    with pytest.raises(ValueError, match="labels must be 0 to 8"):
        Sampler(Linear(), 2)(Guided(Counted(), 2.0, null_label=9), X, Y + 8)


def test_a_real_network_with_all_inputs():
    """Second time and guidance reach the network, and the wrappers cost what they say."""
    inputs = dict(second_time=True, guidance_input=True, guidance_interval=True)
    network = DiTConfig(size="T/2", **inputs).build((1, 8, 8), 10)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    z, y = torch.randn(2, 1, 8, 8, generator=generator), torch.tensor([3, 10])
    network.eval()
    results = [
        sampler(guided, z, y)
        for sampler in (Sampler(Linear(), 3), Sampler(Linear(), 3, solver="jump"))
        for guided in (
            network,
            GuidanceInput(network, 2.0),
            GuidanceInput(network, 2.0, (0.4, 0.6)),
            Guided(network, 2.0, null_label=10),
        )
    ]
    for i, one in enumerate(results):
        assert torch.isfinite(one).all()
        assert all((one - two).abs().max() > 1e-4 for two in results[:i])
    direct = network(z, torch.ones(2), y, guidance=torch.full((2,), 2.0))
    torch.testing.assert_close(GuidanceInput(network, 2.0)(z, torch.ones(2), y), direct)
    told = network(z, torch.ones(2), y, guidance=torch.tensor([[2.0, 0.4, 0.6]] * 2))
    torch.testing.assert_close(GuidanceInput(network, 2.0, (0.4, 0.6))(z, torch.ones(2), y), told)


def test_internal_guidance_is_one_call_away_from_the_exit_head():
    calls = []

    class Exiting:
        exits, num_classes = True, 3

        def __call__(self, x, t, y, heads="map"):
            calls.append((heads, len(x)))
            return (2 * x, 0.5 * x) if heads == "both" else 2 * x

    x, t, y = torch.randn(4, 1, 2, 2), torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.arange(4) % 3
    guided = Guidance(1.5, (0.3, 0.7), kind="internal").apply(Exiting(), 3)
    expected = 2 * x
    expected[1:3] = (0.5 + 1.5 * 1.5) * x[1:3]  # exit + w (deep - exit)
    torch.testing.assert_close(guided(x, t, y), expected)
    assert calls == [("map", 4), ("both", 2)]
    calls.clear()
    torch.testing.assert_close(guided.at(0.5)(x, t, y), (0.5 + 1.5 * 1.5) * x)
    assert calls == [("both", 4)]
    with pytest.raises(ValueError, match="needs a network with an exit head"):
        Guidance(1.5, kind="internal").apply(lambda x, t, y: x, 3)
