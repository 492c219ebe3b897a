"""Laws of 400,000 draws of every preset against the laws of its public code.

A published law is a list of parts, each a share of the rows and a function of uniform numbers; its
quantiles are taken on a fine grid of these numbers, without any randomness.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import expit, ndtri

from ucgm.objective import preset

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


def pair(law):
    """Later and earlier of two draws."""
    a, b = law(FIRST), law(SECOND)
    return np.maximum(a, b), np.minimum(a, b)


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
    "meanflow": [Part(0.75, same(pair(meanflow)[0])), Part(0.25, pair(meanflow))],
    "imf": [Part(0.5, same(pair(meanflow)[0])), Part(0.5, pair(meanflow))],
    "rcgm": [Part(1, short(FIRST, SECOND))],
    "twinflow": [
        Part(0.25, to_data(np.ones(1))),
        Part(0.25, short(FIRST, 0.05 * SECOND)),
        Part(0.25, short(FIRST, SECOND)),
        Part(0.25, same(U)),
    ],
    "facm": [Part(1, to_data(angle(U, -0.8, 1.6)))],
}


def quantiles(values, weights):
    if values.size == 0:
        return None
    order = np.argsort(values)
    reached = weights[order].cumsum() / weights.sum() - 0.5 * weights[order] / weights.sum()
    return np.interp(LEVELS, reached, values[order])


def measures(t, s, weights):
    """Quantiles of t, of t where s = t, of the gap, of s, and the share of s = t."""
    equal = s == t
    return {
        "t": quantiles(t, weights),
        "t where s = t": quantiles(t[equal], weights[equal]),
        "gap": quantiles((t - s)[~equal], weights[~equal]),
        "s": quantiles(s, weights),
        "share of s = t": weights[equal].sum() / weights.sum(),
    }


def published(parts):
    weights = [np.full(part.times[0].size, part.share / part.times[0].size) for part in parts]
    t, s = (np.concatenate([part.times[i] for part in parts]) for i in (0, 1))
    return measures(t, s, np.concatenate(weights))


def drawn(name):
    objective = replace(preset(name), coupling="independent")  # 400,000 rows have no assignment
    x, y = torch.zeros(ROWS, 1, 1, 1), torch.zeros(ROWS, dtype=torch.int64)
    return objective.draw(x, y, 5, torch.Generator().manual_seed(4))


def close(found, wanted, what=""):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE, err_msg=what)


@pytest.mark.parametrize("name", LAWS)
def test_draws_have_the_published_law(name):
    draw, parts = drawn(name), LAWS[name]
    t, s = draw.t.double().numpy(), draw.s.double().numpy()
    found, wanted = measures(t, s, np.ones(ROWS)), published(parts)
    for key, value in wanted.items():
        assert (found[key] is None) == (value is None), key
        if value is not None:
            close(found[key], value, key)
    if all(part.dropped is not None for part in parts):
        dropped = draw.dropped.numpy()
        close(dropped.mean(), sum(part.share * part.dropped for part in parts), "dropped")
        later = [part for part in parts if (part.times[0] > part.times[1]).any()]
        close((dropped & (s < t)).mean(), sum(p.share * p.dropped for p in later), "of s < t")
