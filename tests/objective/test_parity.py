"""Every preset as shipped against the formula of its public code; the formulas against its numbers.

``scripts/parity.py`` writes the table of the same comparison from other draws.
"""

import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import golden, golden_network
from ucgm.objective import preset

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import parity
import published as public


@pytest.mark.parametrize("name", parity.CASES)
def test_preset_as_shipped_is_the_published_method(name):
    found = parity.compare(name, seed=20)
    assert max(found.values()) < parity.LIMIT, found


@pytest.mark.parametrize("name", parity.CASES)
def test_declared_deviations_are_deviations(name):
    case = parity.CASES[name]
    shipped = preset(name)
    for setting, there in case.settings.items():
        assert getattr(shipped, setting) != there
        assert f"{setting} {getattr(shipped, setting):g}" in case.deviations


def test_the_draws_have_the_rows_that_matter():
    draw, y = parity.drawn(preset("ucgm_multi"), 20, 1.0)
    assert 3 < draw.dropped.sum() < 30 and torch.equal(draw.y[~draw.dropped], y[~draw.dropped])
    assert (draw.t == 1).any() and (draw.t > 0.75).sum() > 10 and (draw.t < 0.01).any()


GOLDEN, ARRAYS = golden("ucgm_t")
LINEAR = [row for row in GOLDEN if row["transport_type"] == "Linear"]


@pytest.mark.parametrize("row", LINEAR, ids=lambda r: str(r["index"]))
def test_formula_of_ucgm_gives_the_published_numbers(row):
    assert len(LINEAR) > 5
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    dropped = torch.arange(20) >= 18
    t = ARRAYS["t"].flatten()
    batch = public.Batch(ARRAYS["x"], ARRAYS["z"], t, t, ARRAYS["y"], dropped, 4)
    net, ratio = golden_network(one), row["consistc_ratio"]
    found = public.ucgm(
        net,
        batch,
        ratio,
        row["enhanced_ratio"],
        uncond=net,
        teacher=net if ratio else None,
        interval=tuple(row.get("enhanced_range", (0.0, 0.75))),
        huber=row.get("scaled_cbl_eps", 0.0),
        with_cosine=row.get("wt_cosine_loss", False),
        weight=row.get("weight_funcion") == "Cosine",
        half_pi=1.57,
    )
    torch.testing.assert_close(found.target, ARRAYS[f"target_{row['index']}"])
    assert found.loss.item() == pytest.approx(row["loss"], abs=1e-12)
    assert torch.autograd.grad(found.loss, one)[0].item() == pytest.approx(row["grad"], abs=1e-12)
