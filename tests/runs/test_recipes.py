"""What a training is set to where nobody said anything."""

import pytest

from tests.data.toys import image_tree
from ucgm.cli import main
from ucgm.data import Digits
from ucgm.objective.presets import PRESETS
from ucgm.runs.config import read_config
from ucgm.runs.layers import config_of, layers_of, training_config
from ucgm.sampler import Grid, Sampler


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_brings_its_inputs_and_a_sampler_of_its_kind(name):
    config = config_of(["--objective.preset", name, "--model.size", "N/2"])
    objective = config.objective
    assert config.model.second_time == objective.two_time
    assert config.model.guidance_input == (objective.guidance_range is not None)
    maps = objective.consistency_ratio > 0
    assert (config.sampler.steps == 2) == maps
    assert (config.sampler.solver == "jump") == (maps and objective.two_time)
    # The second of two steps begins where there is work left, not at the end.
    assert not maps or 0.3 <= float(config.sampler.grid.times(2)[1]) <= 0.75


def test_files_below_the_preset_give_way_and_flags_win(tmp_path):
    below, few = tmp_path / "below.yaml", tmp_path / "few.yaml"
    below.write_text("sampler: {steps: 8, extrapolation: 0.5}\noptimizer: {lr: 0.5}\n")
    few.write_text("objective: {preset: ucgm_few}\nsampler: {steps: 4}\n")
    words = ["--train.grad_clip", "7", "--config", str(below), "--config", str(few)]
    config = config_of(words)
    grid = Grid(gap=(0.001, 0.5))
    assert config.sampler == Sampler(steps=4, stochasticity=1.0, grid=grid)
    assert (config.optimizer.name, config.optimizer.lr) == ("radam", 0.5)
    assert config.train.grad_clip == 7


def test_an_input_that_was_refused_stays_refused():
    words = ["--objective.preset", "meanflow", "--model.second_time", "false"]
    assert config_of(words).model.second_time is False


def test_size_and_length_fit_the_data(tmp_path):
    config, fitted = training_config([], tmp_path / "run")
    assert fitted is not None
    model = config.model.build((1, 8, 8), 10)
    assert sum(p.numel() for p in model.parameters()) < 2e6
    assert config.train.steps * config.train.global_batch < 300_000
    named, nothing = training_config(layers_of(["--model.size", "B/2"]), tmp_path / "run")
    assert nothing is None and named.train.steps == 100_000


def test_the_same_command_continues_what_was_fitted(tmp_path, capsys):
    run, words = str(tmp_path / "run"), ["--train.preview_every", "100"]
    main(["train", "--run-dir", run, "--train.steps", "2", *words])
    assert "model.size T/1" in capsys.readouterr().out
    before = read_config(tmp_path / "run" / "config.yaml")
    assert before.data == Digits() and before.optimizer.lr == 1e-3
    preset = ["--objective.preset", "flow_matching", "--train.steps", "3", *words]
    main(["train", "--run-dir", run, *preset])
    after = read_config(tmp_path / "run" / "config.yaml")
    assert after.model == before.model and after.optimizer == before.optimizer


def test_a_tuning_takes_network_and_data_of_its_teacher(tmp_path):
    image_tree(tmp_path / "images", classes=2, per_class=4)
    data = ["--data", "Images", "--data.path", str(tmp_path / "images"), "--data.size", "16"]
    short = ["--train.steps", "2", "--train.global_batch", "4", "--train.preview_every", "100"]
    main(["train", *data, *short, "--run-dir", str(tmp_path / "multi")])
    few = ["--objective.preset", "ucgm_few", "--train.init", str(tmp_path / "multi"), *short]
    main(["train", *few, "--run-dir", str(tmp_path / "few")])
    one, two = (read_config(tmp_path / name / "config.yaml") for name in ("multi", "few"))
    assert (two.model, two.data) == (one.model, one.data)
    assert two.sampler.stochasticity == 1.0
