"""Time grids."""

import pytest
import torch

from tests.test_transport import TRANSPORTS
from ucgm.sampler import Churn, Grid, Restart, Sampler
from ucgm.transport import EDM, Linear, Trig


def test_gaps_and_warp():
    times = Grid(gap=(0.001, 0.5)).times(2)
    assert times.tolist() == pytest.approx([0.999, 0.5, 0.0])
    assert Grid(gap=(0.0, 0.0)).times(4).tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert (Grid((1.17, 0.8, 1.1)).times(20).diff() < 0).all()
    u = torch.linspace(0.1, 0.8, 5, dtype=torch.float64)
    warped = 1 - (1 - (1 - u**2) ** 0.5) ** 3
    assert Grid((2.0, 0.5, 3.0), (0.1, 0.2)).times(5)[:-1].tolist() == pytest.approx(
        warped.tolist()
    )


def test_shift():
    plain, shifted = Grid().times(9), Grid(shift=3.0).times(9)
    assert shifted.tolist() == pytest.approx((3 * plain / (1 + 2 * plain)).tolist())
    # The signal-to-noise ratio of the linear path is divided by 3^2.
    difference = Linear().log_snr(plain[:-1]) - Linear().log_snr(shifted[:-1])
    assert difference.tolist() == pytest.approx([2 * torch.tensor(3.0).log().item()] * 9, rel=1e-6)


@pytest.mark.parametrize("path", TRANSPORTS, ids=str)
@pytest.mark.parametrize("spacing", ["uniform", "log_snr", "karras"])
@pytest.mark.parametrize("warp", [(1.0, 1.0, 1.0), (1.2, 0.7, 1.1)])
def test_every_spacing_falls_between_the_gaps(path, spacing, warp):
    times = Grid(warp, (0.01, 0.02), spacing).times(12, path)
    assert times.dtype == torch.float64 and len(times) == 13 and (times.diff() < 0).all()
    if warp == (1.0, 1.0, 1.0):
        assert times[[0, -2, -1]].tolist() == pytest.approx([0.99, 0.02, 0.0], abs=1e-9)


@pytest.mark.parametrize("path", [Linear(), Trig(), EDM()], ids=str)
def test_coordinates(path):
    log_snr = path.log_snr(Grid(gap=(0.01, 0.02), spacing="log_snr").times(8, path)[:-1])
    assert log_snr.diff().std() < 1e-6 * log_snr.diff().abs().mean()
    power = (
        -path.log_snr(Grid(gap=(0.01, 0.02), spacing="karras", rho=5.0).times(8, path)[:-1]) / 10
    ).exp()
    assert power.diff().std() < 1e-6 * power.diff().abs().mean()


def test_karras_noise_levels_are_edms():
    """The published schedule from 80 to 0.002 with rho 7, as times of the EDM path."""
    path = EDM()
    ends = [
        float(path.time_at_log_snr(-2 * torch.tensor(s, dtype=torch.float64).log()))
        for s in (75.0, 0.002)
    ]
    grid = Grid(gap=(1 - ends[0], ends[1]), spacing="karras")
    noise = (-0.5 * path.log_snr(grid.times(18, path)[:-1])).exp()
    i = torch.arange(18, dtype=torch.float64)
    expected = (75 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 75 ** (1 / 7))) ** 7
    torch.testing.assert_close(noise, expected, rtol=1e-6, atol=0)


def test_lists_are_as_good_as_tuples():
    listed = Sampler(
        steps=2,
        solver="heun",
        grid=Grid(warp=[1.0, 1.0, 1.0], gap=[0.1, 0.1], explicit=[0.9, 0.4]),
        churn=Churn(1.0, [0.1, 0.9]),
        restart=Restart([0.3, 0.6]),
    )
    assert listed.nfe == 2 * 2 + 2 * 2 - 1


def test_explicit():
    assert Grid(explicit=(1.0, 0.3)).times(2).tolist() == [1.0, 0.3, 0.0]
    assert Sampler(Linear(), 2, stochasticity=1.0, grid=Grid(explicit=(1.0, 0.3))).nfe == 2


BAD = [
    ({"gap": (0.5, 0.5)}, "gap"),
    ({"gap": (-0.1, 0.0)}, "gap"),
    ({"warp": (0.0, 1.0, 1.0)}, "warp"),
    ({"warp": (1.0, 1.0)}, "warp"),
    ({"shift": 0.0}, "shift"),
    ({"spacing": "cosine"}, "one of uniform, log_snr, karras"),
    ({"explicit": (0.5, 0.5)}, "falling times"),
    ({"explicit": (1.2, 0.5)}, "at most 1"),
    ({"explicit": ()}, "falling times"),
]


@pytest.mark.parametrize("settings, message", BAD)
def test_bad_grids(settings, message):
    with pytest.raises(ValueError, match=message):
        Grid(**settings)


def test_more_steps_than_the_grid_allows():
    with pytest.raises(ValueError, match="grid.explicit has 2 times and the sampler 5 steps"):
        Sampler(Linear(), 5, grid=Grid(explicit=(0.9, 0.4))).plan()
    with pytest.raises(ValueError, match="more than this grid allows"):
        Sampler(Linear(), 2000, grid=Grid(warp=(6.0, 6.0, 6.0))).plan()
    with pytest.raises(ValueError, match="at least 1"):
        Grid().times(0)


def test_spacings_need_finite_ends():
    with pytest.raises(ValueError, match="start gap above 0"):
        Grid(gap=(0.0, 0.01), spacing="karras").times(4, Linear())
    with pytest.raises(ValueError, match="end gap above 0"):
        Grid(gap=(0.01, 0.0), spacing="log_snr").times(4, Linear())
    assert Grid(gap=(0.01, 0.0), spacing="karras").times(4, Linear())[-1] == 0
