"""Tangents of a trained network in the arithmetic of a GPU: bf16 derivatives, TF32 differences."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.test_train import tiny
from ucgm.data import Digits
from ucgm.nn import DiTConfig
from ucgm.objective import preset
from ucgm.runs import checkpoint
from ucgm.runs.settings import EMAConfig, OptimizerConfig
from ucgm.training.loop import train

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "tangents.py"


@pytest.mark.parametrize("family", ["dit", "tit"])
def test_tangents_in_half_precision(family, tmp_path):
    """At most 1.5 % by a forward derivative in bf16, 3 % by differences of width 0.01 in TF32."""
    config = replace(
        tiny(steps=60, global_batch=32, log_every=60, checkpoint_every=60),
        model=DiTConfig(size="N/2", family=family),
        objective=preset("flow_matching"),
        optimizer=OptimizerConfig(lr=4e-3, warmup_steps=10),
        ema=EMAConfig(decay=0.9),
    )
    run = checkpoint.load_run(train(config, tmp_path / "run"))
    data = Digits().open()
    measure = runpy.run_path(str(SCRIPT))["tangent_errors"]
    errors = dict(measure(run.network.eval(), data.x[:48], data.y[:48]))
    assert 1e-4 < errors["jvp bf16"] < 0.015
    assert 1e-4 < errors["TF32 0.01"] < 0.03
    assert errors["TF32 0.01"] < errors["TF32 0.005"]
