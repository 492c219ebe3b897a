"""Every preset as shipped against the formula of its public code.

``scripts/parity.py`` writes the table of the same comparison from other draws; test_published.py
holds the formulas to published numbers.
"""

import sys
from pathlib import Path

import pytest
import torch

from ucgm.objective import PRESETS, preset
from ucgm.runs.fitted import DEFAULTS

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import parity

SEED = 20


def test_every_preset_is_compared():
    """But for the one that exists to be compared, with the trainer's own numbers."""
    assert set(parity.CASES) == set(PRESETS) - {"ucgm_paper", *DEFAULTS}


@pytest.mark.parametrize("name", parity.CASES)
def test_preset_as_shipped_is_the_published_method(name):
    found = parity.compare(name, SEED)
    assert max(found.values()) < parity.LIMIT, found


@pytest.mark.parametrize("name", parity.CASES)
def test_declared_deviations_are_deviations(name):
    case = parity.CASES[name]
    shipped = preset(name)
    for setting, there in case.settings.items():
        assert getattr(shipped, setting) != there
        assert f"{setting} {getattr(shipped, setting):g}" in case.deviations


@pytest.mark.parametrize(
    "name, setting",
    [
        ("meanflow", {"guidance_mix": 0.499}),
        ("alpha_flow", {"target_clamp": 4.01}),
        ("shortcut", {"state_clamp": 4.01}),
        ("rcgm", {"clamp": 1.01}),
        ("ect", {"pseudo_huber_c": 0.01}),
        ("imf", {"velocity_head": 0.99}),
        ("ucgm_few", {"enhancement_interval": (0.0, 0.7500001)}),
    ],
)
def test_the_comparison_notices_a_setting(name, setting):
    assert max(parity.compare(name, SEED, **setting).values()) > 1e3 * parity.LIMIT


def test_the_page_is_of_these_comparisons():
    rows = [line for line in parity.PAGE.read_text().splitlines() if line.startswith("| `")]
    for row, name in zip(rows, parity.CASES, strict=True):
        assert row.startswith(parity.start(name)) and row.endswith(parity.end(name))
        found = [float(cell) for cell in row.split(" | ")[2:5]]
        assert max(found) < parity.LIMIT


def test_the_draws_have_the_rows_that_matter():
    draw, y = parity.drawn(preset("ucgm_multi"), SEED, 1.0)
    assert 3 < draw.dropped.sum() < 30 and torch.equal(draw.y[~draw.dropped], y[~draw.dropped])
    assert (draw.t == 1).any() and (draw.t > 0.75).sum() > 10 and (draw.t < 0.01).any()


@pytest.mark.parametrize("name", ["alpha_flow", "imf", "rcgm", "soflow", "twinflow"])
def test_the_draws_of_flow_maps_have_them_too(name):
    draw, _ = parity.drawn(preset(name), SEED, 1.0)
    gap = draw.t - draw.s
    assert ((gap > 0) & (gap < 0.01)).sum() > 3 and (gap > 0.5).any() and (draw.t == 1).any()
    if name != "twinflow":
        assert draw.dropped.any()
    if name == "imf":
        _, low, high = draw.guidance.T
        outside = (draw.t < low) | (draw.t > high)
        assert outside.sum() > 3 and (~outside & (gap > 0)).sum() > 3
