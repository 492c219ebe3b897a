"""Settings have a type and a range, which their annotation says."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest

from ucgm.data import Digits, Images
from ucgm.nn import DiTConfig
from ucgm.objective import Beta, LogNormal, Objective
from ucgm.runs.settings import EMAConfig, OptimizerConfig, TrainConfig
from ucgm.runtime.values import Range, Share, check_values, checked
from ucgm.sampler import Churn, Grid, Guidance, Restart, Sampler
from ucgm.transport import EDM, XPrediction

Colour = Literal["red", "green"]


@dataclasses.dataclass(frozen=True)
class Paint:
    colour: Colour = "red"
    second: Colour | None = None
    layers: Annotated[int, Range(1, 9)] = 2
    mix: tuple[Share, ...] = ()
    path: str = "any"
    wet: bool = False
    place: int | str = 0

    def __post_init__(self):
        check_values(self, "paint")


def test_what_an_annotation_allows_is_kept_in_its_type():
    paint = Paint("green", "red", np.int64(3), [np.float32(0.5), 1], Path("a/b"), True, "x")
    assert paint == Paint("green", "red", 3, (0.5, 1.0), "a/b", True, "x")
    assert [type(v) for v in (paint.layers, *paint.mix)] == [int, float, float]
    assert checked(float, "1e-4", "lr", text=True) == 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": "blue"}, "paint.colour must be one of red, green, got 'blue'"),
        ({"second": 1}, "paint.second must be one of red, green, got 1"),
        ({"layers": 0}, "paint.layers must be at least 1, got 0"),
        ({"layers": 10**9}, "paint.layers must be at most 9, got 1000000000"),
        ({"layers": True}, "paint.layers must be a whole number, got True"),
        ({"layers": "two"}, "paint.layers must be a whole number, got 'two'"),
        ({"layers": 2.5}, "paint.layers must be a whole number, got 2.5"),
        ({"mix": 0.5}, "paint.mix must be a list, got 0.5"),
        ({"mix": (0.5, math.nan)}, r"paint.mix\[1\] must be a finite number, got nan"),
        ({"mix": (10**400,)}, r"paint.mix\[0\] must be a finite number, got 1000"),
        ({"path": 5}, "paint.path must be a text, got 5"),
        ({"wet": "yes"}, "paint.wet must be true or false, got 'yes'"),
    ],
)
def test_anything_else_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Paint(**settings)


BUILDS = (
    (Objective, "flow_anchor normalize clamp pseudo_huber_c enhancement_ratio loss_power matching"),
    (Objective, "tangent_step tangent_warmup guidance_mix cosine_floor alignment label_dropout"),
    (Objective, "consistency_ratio loss_epsilon compose_steps"),
    (Sampler, "steps order stochasticity extrapolation"),
    (Grid, "rho shift"),
    (Guidance, "scale channels"),
    (Churn, "amount scale"),
    (Restart, "repeats steps"),
    (Beta, "a b scale"),
    (LogNormal, "mean std"),
    (EDM, "sigma_data"),
    (XPrediction, "path"),
    (DiTConfig, "depth hidden_size mlp_ratio time_scale time_max_period"),
    (TrainConfig, "steps global_batch seed grad_clip num_workers"),
    (OptimizerConfig, "lr eps weight_decay warmup_steps"),
    (EMAConfig, "decay target_decay std snapshot_every"),
    (Digits, "split"),
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "two", 10**400, [1]])
@pytest.mark.parametrize(("cls", "names"), BUILDS)
def test_settings_built_in_python_are_checked_like_those_of_files(cls, names, value):
    for name in names.split():
        with pytest.raises(ValueError, match=rf"{name} must be") as caught:
            cls(**{name: value})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_sizes_that_nobody_means():
    for cls, settings in ((DiTConfig, {"depth": 10**9}), (Images, {"path": "x", "size": 10**9})):
        with pytest.raises(ValueError, match="must be at most"):
            cls(**settings)
