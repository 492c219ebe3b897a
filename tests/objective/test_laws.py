"""Laws of 400,000 draws of every preset against the laws of its public code.

A published law is a list of parts, each a share of the rows and a function of uniform numbers; its
quantiles are taken on a fine grid of these numbers, without any randomness.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import expit, logit, ndtr, ndtri

from ucgm.objective import PRESETS, preset
from ucgm.runs.fitted import DEFAULTS

LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
TOLERANCE, ROWS, GRID = 0.004, 400_000, 800
U = (np.arange(GRID * GRID) + 0.5) / GRID**2
FIRST, SECOND = (a.flatten() for a in np.meshgrid(*[(np.arange(GRID) + 0.5) / GRID] * 2))


def logit_normal(u, mean, std):
    return expit(mean + std * ndtri(u))


def level(u, mean, std):
    """Times of EDM at lognormal noise levels."""
    return (((mean + std * ndtri(u)) / 4 + 1.59) / 2.68).clip(0, 1)


def angle(u, mean, std):
    """Times at which the angle has a lognormal tangent."""
    return np.arctan(np.exp(mean + std * ndtri(u))) * 2 / np.pi


def ordered(a, b):
    """Later and earlier of two times."""
    return np.maximum(a, b), np.minimum(a, b)


def pair(law):
    """Later and earlier of two draws of a law."""
    return ordered(law(FIRST), law(SECOND))


def before(late, early):
    """SoFlow's pair: what is not earlier is moved to just before."""
    return late, np.minimum(early, late - 1e-4)


def gap_first():
    """TVM's pair: the gap, then s of a law cut off at 1 - gap."""
    gap = logit_normal(FIRST, -0.8, 1.0)
    s = logit_normal(SECOND * ndtr(logit(1 - gap) + 0.4), -0.4, 1.0)
    return s + gap, s


STEPS = np.arange(129) / 128


def dyadic():
    """Shortcut's jumps of 1, 1/2, ... 1/64, each from anywhere on its own grid."""
    sizes, starts = np.meshgrid(2.0 ** -np.arange(7), np.arange(64) / 64)
    starts = np.floor(starts / sizes) * sizes
    return (starts + sizes).flatten(), starts.flatten()


def meanflow(u):
    return logit_normal(u, -0.4, 1.0)


def same(t):
    return t, t


def to_data(t):
    return t, 0 * t


def short(t, u):
    return t, t * (1 - u)


class Part(NamedTuple):
    """Share of the rows; their times (t, s); share of them whose label is dropped, where known."""

    share: float
    times: tuple
    dropped: float | None = None


LAWS = {
    "ddpm": [Part(1, same(U), 0.1)],  # of 1,000 discrete times there
    "v_prediction": [Part(1, same(U))],
    "edm": [Part(1, same(level(U, -1.2, 1.2)))],
    "edm2": [Part(1, same(level(U, -0.4, 1.0)))],
    "flow_matching": [Part(1, same(U), 0.1)],
    "lightningdit": [Part(1, same(logit_normal(U, 0.0, 1.0)), 0.1)],
    "ot_cfm": [Part(1, same(U))],
    "ucgm_multi": [Part(1, same(U), 0.1)],
    "ucgm_lambda": [Part(1, to_data(U), 0.1)],
    "ucgm_few": [Part(1, to_data(U ** (1 / 0.8)), 0.1)],
    "ect": [Part(1, to_data(level(U, -1.1, 2.0)))],
    "scm": [Part(1, to_data(angle(U, -1.0 - np.log(0.5), 1.4)))],
    "scd": [Part(1, to_data(angle(U, -1.0 - np.log(0.5), 1.4)))],
    "meanflow": [
        Part(0.75, same(pair(meanflow)[0]), 0.1 / 0.75),
        Part(0.25, pair(meanflow), 0),
    ],
    "pixel_meanflow": [
        Part(0.25, same(pair(lambda u: logit_normal(u, -2.0, 2.0))[0])),
        Part(0.75, pair(lambda u: logit_normal(u, -2.0, 2.0))),
    ],
    "decoupled_meanflow": [
        Part(0.5, same(logit_normal(U, 0.0, 1.0)), 0.1),
        Part(
            0.5,
            ordered(logit_normal(FIRST, 0.4, 1.0), logit_normal(SECOND, -1.2, 1.0)),
            0.1,
        ),
    ],
    "imf": [Part(0.5, same(pair(meanflow)[0]), 0.2), Part(0.5, pair(meanflow), 0)],
    "alpha_flow": [Part(0.25, same(meanflow(U)), 0.1), Part(0.75, pair(meanflow), 0.1)],
    "soflow": [
        Part(0.75, same(logit_normal(U, -0.2, 1.0)), 0.1),
        Part(0.25, before(logit_normal(FIRST, 0.2, 0.8), logit_normal(SECOND, -1.0, 0.8)), 0.1),
    ],
    "tim": [
        Part(0.5, same(pair(meanflow)[0]), 0.1),
        Part(0.4, pair(meanflow), 0.1),
        Part(0.1, to_data(pair(meanflow)[0]), 0.1),
    ],
    "terminal_velocity": [Part(1, gap_first(), 0.1)],
    "lsd": [Part(0.75, same(U)), Part(0.25, pair(lambda u: u))],
    "shortcut": [
        Part(0.125, dyadic(), 0),
        Part(0.875, (STEPS[1:], STEPS[:-1]), 0.1),
    ],
    "rcgm": [Part(1, short(FIRST, SECOND))],
    "twinflow": [
        Part(0.25, to_data(np.ones(1)), 0),
        Part(0.25, short(FIRST, 0.05 * SECOND), 0),
        Part(0.25, short(FIRST, SECOND), 0),
        Part(0.25, same(U), 0),
    ],
    "facm": [Part(1, to_data(angle(U, -0.8, 1.6)), 0)],
    "jit": [Part(1, same(logit_normal(U, 0.8, 0.8)), 0.1)],
}
ON_GRID = ("shortcut",)


def quantiles(values, weights):
    if values.size == 0:
        return None
    order = np.argsort(values)
    reached = (weights[order].cumsum() - 0.5 * weights[order]) / weights.sum()
    return np.interp(LEVELS, reached, values[order])


def reached(values, weights):
    """Shares of the values below the middles of the grid, where quantiles would hang on a digit."""
    return np.histogram(values, np.append(-np.inf, STEPS + 1 / 256), weights=weights)[0].cumsum()


def measures(t, s, weights, of=quantiles):
    """Quantiles of t, of t where s = t, of the gap, of s, and the share of s = t."""
    equal, weights = s == t, weights / weights.sum()
    return {
        "t": of(t, weights),
        "t where s = t": of(t[equal], weights[equal]),
        "gap": of((t - s)[~equal], weights[~equal]),
        "s": of(s, weights),
        "share of s = t": weights[equal].sum(),
    }


def published(parts, of):
    weights = [np.full(part.times[0].size, part.share / part.times[0].size) for part in parts]
    t, s = (np.concatenate([part.times[i] for part in parts]) for i in (0, 1))
    return measures(t, s, np.concatenate(weights), of)


def drawn(name):
    objective = replace(preset(name), coupling="independent")  # 400,000 rows have no assignment
    x, y = torch.zeros(ROWS, 1, 1, 1), torch.zeros(ROWS, dtype=torch.int64)
    return objective.draw(x, y, 5, torch.Generator().manual_seed(4))


def close(found, wanted, what=""):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE, err_msg=what)


def test_every_preset_has_a_law():
    assert set(LAWS) == set(PRESETS) - {"ucgm_paper", *DEFAULTS}


@pytest.mark.parametrize("name", LAWS)
def test_draws_have_the_published_law(name):
    draw, parts = drawn(name), LAWS[name]
    t, s = draw.t.double().numpy(), draw.s.double().numpy()
    of = reached if name in ON_GRID else quantiles
    found, wanted = measures(t, s, np.ones(ROWS), of), published(parts, of)
    for key, value in wanted.items():
        assert (found[key] is None) == (value is None), key
        if value is not None:
            close(found[key], value, key)
    if all(part.dropped is not None for part in parts):
        dropped = draw.dropped.numpy()
        close(dropped.mean(), sum(part.share * part.dropped for part in parts), "dropped")
        later = [part for part in parts if (part.times[0] > part.times[1]).any()]
        close((dropped & (s < t)).mean(), sum(p.share * p.dropped for p in later), "of s < t")


def test_guidance_of_imf_is_drawn_as_published():
    """Scales 8^u; intervals from U(0, 1/2) to U(1/2, 1) where s < t, and all times elsewhere."""
    draw = drawn("imf")
    scale, low, high = draw.guidance.double().numpy().T
    later = (draw.s < draw.t).numpy()
    for rows in (later, ~later):
        close(np.quantile(np.log(scale[rows]) / np.log(8), LEVELS), LEVELS)
    close(np.quantile(low[later], LEVELS), LEVELS / 2)
    close(np.quantile(high[later], LEVELS), 0.5 + LEVELS / 2)
    assert (low[~later] == 0).all() and (high[~later] == 1).all()


def test_guidance_and_second_time_of_terminal_velocity_are_drawn_as_published():
    draw = drawn("terminal_velocity")
    assert torch.equal(draw.guidance, torch.where(draw.dropped, 1.0, 2.0))
    close(np.quantile(draw.flow_time.numpy(), LEVELS), meanflow(LEVELS))
    correlation = np.corrcoef(draw.flow_time.numpy(), draw.s.numpy())[0, 1]
    assert abs(correlation) < TOLERANCE
