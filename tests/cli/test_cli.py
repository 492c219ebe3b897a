"""The command line: layering, one-line errors with the remedy, exit code 2, a fast --help."""

import importlib
import subprocess
import sys
import time

import pytest
import torch
import yaml

from ucgm.cli import commands as cli
from ucgm.cli import options
from ucgm.objective import PRESETS, preset
from ucgm.objective.times import LogitNormal
from ucgm.runs.config import Config, differences, from_dict, read_config, to_dict, write_config
from ucgm.transport import Trig

REPO = __import__("pathlib").Path(__file__).parents[2]


@pytest.fixture
def trained(monkeypatch):
    """Replace the training by a record of what it would be given."""
    calls = []
    import ucgm.training.loop

    monkeypatch.setattr(
        ucgm.training.loop, "train", lambda config, run_dir: calls.append((config, run_dir))
    )
    return calls


def fails(capsys, *words):
    """The message of a command that must end with exit code 2 and one line."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


def write(path, **content):
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_help_is_fast_and_imports_no_torch():
    start = time.perf_counter()
    code = (
        "import sys; from ucgm.cli import main; main(['--help']); "
        "assert 'torch' not in sys.modules and 'jsonargparse' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "benchmark" in done.stdout and time.perf_counter() - start < 5


def test_layers(trained, tmp_path):
    one = write(
        tmp_path / "one.yaml",
        objective={"preset": "ucgm_multi", "time_law": {"class_path": "LogitNormal"}},
        optimizer={"lr": 0.5, "schedule": "cosine"},
    )
    two = write(tmp_path / "two.yaml", optimizer={"lr": 0.25})
    cli.main(
        [
            "train",
            "--config",
            one,
            "--config",
            two,
            "--run-dir",
            "x",
            "--train.steps",
            "7",
            "--objective.transport",
            "Trig",
        ]
    )
    config, run_dir = trained[0]
    assert run_dir == "x" and config.train.steps == 7
    assert config.optimizer.lr == 0.25 and config.optimizer.schedule == "cosine"
    assert config.objective == preset("ucgm_multi", time_law=LogitNormal(), transport=Trig())
    assert config.sampler.transport == Trig()


def test_a_file_that_names_a_preset_starts_the_objective_afresh(trained):
    cli.main(
        [
            "train",
            "--config",
            f"{REPO}/configs/digits.yaml",
            "--config",
            f"{REPO}/configs/digits_few.yaml",
            "--run-dir",
            "x",
            "--objective.clamp",
            "2",
        ]
    )
    objective = trained[0][0].objective
    assert objective == preset("few_step", clamp=2.0) != preset("multi_step", clamp=2.0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_the_file_format(name, trained, tmp_path):
    cli.main(["train", "--objective.preset", name, "--run-dir", "x"])
    config = trained[0][0]
    assert config.objective == preset(name)
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    trained.clear()
    cli.main(["train", "--config", str(tmp_path / "config.yaml"), "--run-dir", "x"])
    assert trained[0][0] == config


def test_unknown_keys_name_the_nearest(capsys, tmp_path):
    path = write(tmp_path / "c.yaml", train={"stps": 3})
    assert "train.stps; did you mean train.steps?" in fails(
        capsys, "train", "--config", path, "--run-dir", "x"
    )
    assert "did you mean optimizer.lr?" in fails(
        capsys, "train", "--run-dir", "x", "--optimizer.lrr", "1"
    )
    path = write(
        tmp_path / "d.yaml", model={"class_path": "DiTConfig", "init_args": {"hidden_sise": 3}}
    )
    assert "did you mean model.hidden_size?" in fails(
        capsys, "train", "--config", path, "--run-dir", "x"
    )
    assert "did you mean train?" in fails(capsys, "trian")
    assert "out is given by its place" in fails(capsys, "reference", "x", "--out", "y.npz")


@pytest.mark.parametrize(
    "words, message",
    [
        (
            "--optimizer.learning_rate 1",
            "unknown setting optimizer.learning_rate; did you mean optimizer.lr?",
        ),
        ("--train.batch_size 8", "did you mean train.global_batch?"),
        ("--train.epochs 8", "did you mean train.steps?"),
        ("--train.learning_rate 1", "did you mean optimizer.lr?"),
        ("--train.weight_decay 0", "did you mean optimizer.weight_decay?"),
        ("--max_steps 5", "did you mean train.steps?"),
        ("--lr 5", "did you mean optimizer.lr?"),
        ("--sampler.num_steps 5", "did you mean sampler.steps?"),
        ("--objective.preset few_stp", "unknown preset 'few_stp'; did you mean few_step?"),
        ("--data.path photos --data.size 32", "data.path needs --data Images or --data Latents;"),
        ("--data.size 32", "data.size needs --data Images; it is Digits here"),
        ("--model.num_blocks 3", "model.num_blocks needs --model EDM2Config; it is DiTConfig"),
        ("--objective.time_law Uniform --objective.time_law.scale 1", "time_law.scale needs --obj"),
    ],
)
def test_a_setting_of_another_name_or_class_is_named(words, message, capsys):
    assert message in fails(capsys, "train", "--run-dir", "x", *words.split())


@pytest.mark.parametrize(
    "words, message",
    [
        (["train"], "--run-dir is missing"),
        (["train", "--run-dir", "x", "--train.steps", "many"], "train.steps"),
        (["train", "--run-dir", "x", "--train.steps", "0"], "at least 1"),
        (["train", "--run-dir", "x", "--train.grad_clip", "0"], "null leaves it out"),
        (["train", "--run-dir", "x", "--train.num_workers", "-1"], "at least 0"),
        (["train", "--run-dir", "x", "--train.step", "3"], "train.step"),
        (
            ["train", "--run-dir", "x", "--config", "none.yaml"],
            "none.yaml cannot be read: No such",
        ),
        (["train", "--run-dir", "x", "--objective.preset", "fm"], "unknown preset 'fm'"),
        (["sample", "no-such-run"], "no-such-run"),
        (["benchmark", "no-such-run", "--steps", "1", "2"], "no-such-run"),
    ],
)
def test_bad_input(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_an_error_of_torch_keeps_its_place(monkeypatch, capsys):
    def multiply(*_):
        torch.zeros(2) @ torch.zeros(3)

    def refuse(*_):
        raise RuntimeError("the disk is full")

    trainer = importlib.import_module("ucgm.training.loop")
    for function, traced in ((multiply, True), (refuse, False)):
        monkeypatch.setattr(trainer, "train", function)
        with pytest.raises(SystemExit):
            cli.main(["train", "--run-dir", "x"])
        error = capsys.readouterr().err
        assert ("in multiply" in error) == traced and error.count("ucgm train: error:") == 1


def test_numbers_without_a_dot_are_numbers(trained, tmp_path):
    (tmp_path / "c.yaml").write_text("optimizer:\n  lr: 1e-4\n")
    cli.main(["train", "--config", str(tmp_path / "c.yaml"), "--run-dir", "x"])
    assert trained[0][0].optimizer.lr == 1e-4


def test_a_run_config_imports_nothing_outside_the_package():
    content = to_dict(Config())
    content["data"]["class_path"] = "os.path.Digits"
    with pytest.raises(ValueError, match="not part of ucgm"):
        from_dict(Config, content)
    content["data"]["class_path"] = "ucgm.transport.Linear"
    with pytest.raises(ValueError, match="not a DataConfig"):
        from_dict(Config, content)
    with pytest.raises(ValueError, match="unknown setting train.stps; did you mean train.steps"):
        from_dict(Config, {"train": {"stps": 1}})


def test_differences_name_the_key():
    from dataclasses import replace

    one = Config()
    two = replace(one, objective=preset("ucgm_multi", transport=Trig()))
    found = differences(one, two)
    assert any(line.startswith("objective.transport.class_path: ") for line in found)
    assert differences(one, Config()) == []


def test_list_options(monkeypatch):
    assert options.join_options(["run", "--steps", "1", "2", "--num-images", "3"], ["steps"]) == [
        "run",
        "--steps",
        "[1,2]",
        "--num_images",
        "3",
    ]
    assert options.join_options(["--steps=[4]"], ["steps"]) == ["--steps=[4]"]


@pytest.mark.parametrize("path", sorted(REPO.glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_every_config_parses(path, capsys):
    cli.main(["train", "--config", str(path), "--print-config"])
    assert "objective:" in capsys.readouterr().out
