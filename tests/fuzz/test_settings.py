"""Random settings of objective and sampler: refused in one line, or everything they make is finite.

An objective gives a finite loss and finite gradients over several batches, a sampler finite samples
with as many network calls as it says.
"""

import dataclasses
import math
import typing
from types import NoneType, UnionType

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from ucgm import preset, transport
from ucgm.objective import LogVariance, Objective, destinations, times
from ucgm.objective.presets import PRESETS
from ucgm.runs.config import Config, from_dict, to_dict
from ucgm.runtime.values import Range
from ucgm.sampler import Churn, Grid, Guidance, Restart, Sampler
from ucgm.sampler.sampler import READS
from ucgm.transport import Transport

HOSTILE = st.sampled_from(
    [math.nan, math.inf, -math.inf, -1, 0, 1e300, 10**30, True, "two", "1e3", None, [], [1], {}]
)


OURS = ("ucgm.transport", "ucgm.objective.times", "ucgm.objective.destinations")


def classes(base):
    """The classes of a choice, each with random settings."""
    known = [c for c in base.__subclasses__() if c.__module__ in OURS]
    known += [c for k in known for c in k.__subclasses__()]
    return st.one_of(*(section(c) for c in known))


def values(hint):
    """Mostly what an annotation allows; sometimes anything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return st.one_of(*(st.none() if a is NoneType else values(a) for a in arguments))
    if origin is typing.Literal:
        return st.one_of(*[st.sampled_from(arguments)] * 7, HOSTILE)
    if origin is tuple and arguments[-1] is not ...:
        return st.tuples(*map(values, arguments))
    if origin is tuple:
        rising = st.lists(values(arguments[0]), max_size=5)
        return rising.map(lambda v: sorted(set(v), reverse=True) if _numbers(v) else v)
    if origin is typing.Annotated and typing.get_origin(arguments[0]) is tuple:
        return values(arguments[0])
    if origin is typing.Annotated or hint in (int, float):
        limits = next((n for n in arguments[1:] if isinstance(n, Range)), Range())
        low, high = max(limits.low, -1e7), min(limits.high, 1e7)
        if int in (hint, *arguments):
            few = st.integers(int(low), int(min(high, max(low, 12))))
            return st.one_of(*[few] * 7, HOSTILE)
        usual = st.floats(max(low, -2), min(high, 2)) if low <= 2 else st.floats(low, high)
        return st.one_of(*[usual] * 6, st.floats(low, high), HOSTILE)
    if hint is bool:
        return st.booleans()
    if hint is str:
        return st.just("any")
    if issubclass(hint, Transport | times.TimeDistribution | destinations.Destination):
        return classes(hint)
    return section(hint)


def _numbers(items):
    return all(isinstance(v, float) and not math.isnan(v) for v in items)


def section(cls):
    """A dataclass with a few random settings, or what refused them."""
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [f.name for f in dataclasses.fields(cls) if f.name != "transport"]

    @st.composite
    def build(draw):
        some = draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
        changed = {name: draw(values(hints[name])) for name in some}
        try:
            return cls(**changed)
        except ValueError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 500
            return cls()

    return build() if names else st.just(cls())


HINTS = typing.get_type_hints(Objective, include_extras=True)


@st.composite
def objectives(draw):
    """A preset, and up to four other settings."""
    names = draw(st.lists(st.sampled_from(sorted(HINTS.keys() - {"preset"})), max_size=4))
    return draw(st.sampled_from(sorted(PRESETS))), {n: draw(values(HINTS[n])) for n in names}


class Tiny(nn.Module):
    """A network of (x, t, y[, s][, guidance]) and heads, with gradients of every order."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.out = nn.Linear(16, 32), nn.Linear(32, 12)
        self.classes = nn.Embedding(4, 12)

    def forward(self, x, t, y=None, s=None, guidance=None, heads="map"):
        scale = torch.zeros_like(t) if guidance is None else 1 / guidance.reshape(len(t), -1)[:, 0]
        more = [t, t if s is None else s, scale]
        label = self.classes(torch.full(t.shape, 3) if y is None else y)
        rows = torch.cat((x.flatten(1) + label, torch.stack([*more, torch.cos(3 * t)], 1)), 1)
        out = self.out(torch.tanh(self.layer(rows))).view_as(x)
        return (out, 0.9 * out) if heads == "both" else out


@given(setting=objectives(), seed=st.integers(0, 2**31))
@example(setting=("twinflow", {"tangent": "central"}), seed=0)
@example(setting=("twinflow", {"time_weight": "gap"}), seed=0)
@example(setting=("shortcut", {"time_weight": "gap"}), seed=0)
@example(setting=("flow_matching", {"pseudo_huber_c": 0.0}), seed=0)
def test_an_accepted_objective_has_finite_losses_and_gradients(setting, seed):
    name, changes = setting
    network, target, random = Tiny(), Tiny(), torch.Generator().manual_seed(seed)
    try:
        objective = preset(name, **changes)
        variance = LogVariance(8, objective.two_time)
        assert from_dict(Objective, to_dict(objective)) == objective
        for progress in (0.0, 0.4, 1.0):
            x = torch.randn(16, 3, 2, 2, generator=random)
            y = torch.randint(0, 3, (16,), generator=random)
            draw = objective.draw(x, y, 3, random, progress)
            teacher = [target]
            terms = objective.terms(
                network, draw, target=target, teacher=teacher,
                log_variance=variance, progress=progress,
            )  # fmt: skip
            terms.loss.backward()
            assert terms.loss.isfinite() and terms.per_sample.isfinite().all(), objective
            for parameter in network.parameters():
                assert parameter.grad is None or parameter.grad.isfinite().all(), objective
            network.zero_grad()
    except ValueError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 500


@st.composite
def samplers(draw):
    """A solver with settings that it reads, on any grid; now and then any settings."""
    solver = draw(st.sampled_from(sorted(READS)))
    highest, reads = READS[solver]
    hints = typing.get_type_hints(Sampler, include_extras=True)
    names = draw(st.lists(st.sampled_from(sorted(reads | {"steps", "restart"})), max_size=3))
    changed = {"solver": solver, "order": draw(st.integers(1, highest)), "grid": draw(GRIDS)}
    try:
        sampler = Sampler(**changed | {name: draw(values(hints[name])) for name in names})
    except ValueError:
        sampler = draw(section(Sampler))
    return draw(classes(Transport)), sampler, draw(section(Guidance))


GRIDS = section(Grid)


@given(made=samplers(), seed=st.integers(0, 2**31))
@example(made=(transport.VP("x"), Sampler(grid=Grid(gap=(0.0, 0.0))), Guidance()), seed=0)
@example(made=(transport.Linear(), Sampler(restart=Restart()), Guidance(3.0)), seed=0)
@example(made=(transport.EDM(), Sampler(solver="heun", churn=Churn(1.0)), Guidance()), seed=0)
def test_an_accepted_sampler_gives_finite_samples_with_its_number_of_calls(made, seed):
    path, sampler, guidance = made
    calls = []

    def network(x, t, y=None, s=None, guidance=None):
        calls.append(1)
        return torch.tanh(x) * torch.cos(3 * t).view(-1, 1, 1, 1)

    random = torch.Generator().manual_seed(seed)
    try:
        sampler = dataclasses.replace(sampler, transport=path)
        objective = preset("flow_matching", transport=path)
        config = Config(objective=objective, sampler=sampler, guidance=guidance)
        assert from_dict(Config, to_dict(config)) == config
        guided = guidance.apply(network, 3, network)
        z, y = torch.randn(4, 3, 2, 2, generator=random), torch.arange(4) % 3
        x = sampler(guided, z, y, random)
    except ValueError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 500
        return
    assert x.shape == z.shape and x.isfinite().all(), config
    two = 2 if guidance.kind == "auto" else 1
    assert sampler.nfe <= len(calls) <= two * sampler.nfe
    assert guidance.kind == "auto" or len(calls) == sampler.nfe
