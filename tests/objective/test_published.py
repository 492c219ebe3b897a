"""The formulas of scripts/published*.py against numbers of public code.

Of the published trainer, and of each method on a small network (``tests/golden/published.npz``, six
rows of each).
"""

import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN, golden, golden_network
from ucgm.objective import LogVariance

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import published as public
import published_maps as maps

with np.load(GOLDEN / "published.npz") as archive:
    NUMBERS = {key: torch.from_numpy(archive[key]) for key in archive.files}


def network(who, x, t, y, s=None, guidance=None, heads="map"):
    """The network of these numbers; its guidance is a scale, and its one head the map."""
    e, a, b, c = (NUMBERS[f"{who}_{key}"] for key in "eabc")
    s = t if s is None else s
    if guidance is not None and guidance.ndim == 2:
        guidance = guidance[:, 0]
    g = torch.zeros_like(t) if guidance is None else 1 - 1 / guidance
    times = (t, s, torch.sin(3 * t), torch.cos(2 * (t - s)), t * s, g, g * t, t - s)
    inputs = torch.cat((x.flatten(1), torch.stack(times, 1), e[y]), 1)
    hidden = torch.tanh(1.5 * inputs @ a.T / inputs.shape[1] ** 0.5 + c)
    return (1.5 * hidden @ b.T / 24**0.5).reshape(x.shape)


net, average, teacher = (partial(network, who) for who in ("online", "average", "teacher"))


def batch_of(name):
    def of(key):
        return NUMBERS[f"{name}_{key}"]

    batch = public.Batch(*(of(k) for k in ("x", "z", "t", "s", "y", "dropped")), 5)
    if name == "imf":
        one = torch.ones_like(batch.t)
        batch = batch._replace(guidance=torch.stack((of("guidance"), 0 * one, one), 1))
    if name == "twinflow":
        names = ("part", "source", "noise", "time")
        batch = batch._replace(twin=SimpleNamespace(**{k: of(k) for k in names}))
    return batch._replace(time=batch.t) if name == "terminal_velocity" else batch


def variance():
    head = LogVariance().double()
    head.linear.weight.data = NUMBERS["scm_variance"]
    return head


def terminal_rows(b):
    """The terminal term alone, at scale 1."""
    one = torch.ones_like(b.t)
    found = maps.terminal_velocity(net, average, b, 1.0)
    return found._replace(rows=found.rows - maps.velocity_rows(net, average, b, one, 1.0))


FORMULAS = {
    "ect": lambda b: public.ect(net, b, doublings=3),
    "scm": lambda b: public.scm(net, b, variance(), warm=1.0),
    "meanflow": lambda b: maps.meanflow(net, b, 1.0, 0.5),
    "imf": lambda b: maps.imf(net, b, velocity_head=False),
    "alpha_flow": lambda b: maps.alpha_flow(net, b, 0.5, 1.0, 0.0, (0.0, 1.0)),
    "terminal_velocity": terminal_rows,
    "shortcut": lambda b: maps.shortcut(net, average, b, clip=None),
    "rcgm": lambda b: maps.rcgm(net, average, b, 0.5),
    "twinflow": lambda b: maps.twinflow(net, average, b, 0.5, matching=0.0),
    "facm": lambda b: maps.facm(net, b, teacher=teacher),
    # Its anchor is a twentieth of the way from t to s.
    "soflow": lambda b: maps.soflow(net, b, math.log(0.5) / math.log(0.02)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula_gives_the_numbers_of_the_public_code(name):
    found = FORMULAS[name](batch_of(name))
    close = dict(rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.target, NUMBERS[f"{name}_target"], **close)
    if name != "soflow":  # its public loss has the gradient of these rows, not their value
        torch.testing.assert_close(found.rows, NUMBERS[f"{name}_rows"], **close)


UCGM, ARRAYS = golden("ucgm_t")
LINEAR = [row for row in UCGM if row["transport_type"] == "Linear"]


@pytest.mark.parametrize("row", LINEAR, ids=lambda r: str(r["index"]))
def test_formula_of_ucgm_gives_the_published_numbers(row):
    assert len(LINEAR) > 5
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    dropped = torch.arange(20) >= 18
    t = ARRAYS["t"].flatten()
    batch = public.Batch(ARRAYS["x"], ARRAYS["z"], t, t, ARRAYS["y"], dropped, 4)
    ucgm, ratio = golden_network(one), row["consistc_ratio"]
    found = public.ucgm(
        ucgm,
        batch,
        ratio,
        row["enhanced_ratio"],
        uncond=ucgm,
        teacher=ucgm if ratio else None,
        interval=tuple(row.get("enhanced_range", (0.0, 0.75))),
        huber=row.get("scaled_cbl_eps", 0.0),
        with_cosine=row.get("wt_cosine_loss", False),
        weight=row.get("weight_funcion") == "Cosine",
        half_pi=1.57,
    )
    torch.testing.assert_close(found.target, ARRAYS[f"target_{row['index']}"])
    assert found.loss.item() == pytest.approx(row["loss"], abs=1e-12)
    assert torch.autograd.grad(found.loss, one)[0].item() == pytest.approx(row["grad"], abs=1e-12)
