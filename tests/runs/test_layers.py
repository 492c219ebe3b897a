"""Settings from files and flags: one reader, which imports nothing that a file names."""

import os
import sys

import pytest
import yaml

import ucgm
from ucgm.runs.config import Config, allow_module, class_path, from_dict, read_config, to_dict
from ucgm.runs.layers import config_of
from ucgm.runtime.reading import read_yaml


def write(path, text):
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return str(path)


def test_a_class_that_a_file_names_is_not_imported(tmp_path, monkeypatch):
    place = tmp_path / "runs" / "x"
    place.mkdir(parents=True)
    write(place / "evil.py", "open('/'.join([__file__, '..', '..', 'ran']), 'w')\nclass X: ...")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(place))
    for name in ("runs.x.evil.X", "evil.X", "os.path.X", "ucgm.__main__.X", "ucgm.cli.demo.X"):
        path = write(place / "config.yaml", {"model": {"class_path": name}})
        for read in (
            lambda p=path: config_of(["--config", p]),
            lambda: read_config(place / "config.yaml"),
        ):
            with pytest.raises(ValueError, match="not part of ucgm and is not imported"):
                read()
        for flag in ("--model", "--model.class_path", "--objective.transport", "--data"):
            with pytest.raises(ValueError, match="not part of ucgm and is not imported"):
                config_of([flag, name])
        with pytest.raises(ValueError, match="not part of ucgm"):
            config_of(["--model", f"{{class_path: {name}}}"])
    assert not (tmp_path / "runs" / "ran").exists() and "evil" not in sys.modules


def test_a_class_of_the_users_own_needs_its_module_to_be_named(tmp_path, monkeypatch):
    write(
        tmp_path / "mine_of_mine.py",
        "from dataclasses import dataclass\nfrom ucgm.transport import Linear\n"
        "@dataclass(frozen=True)\nclass Mine(Linear):\n    power: float = 2.0\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="name its module with --import"):
        config_of(["--objective.transport", "mine_of_mine.Mine"])
    allow_module("mine_of_mine")
    words = ["--objective.transport", "mine_of_mine.Mine", "--objective.transport.power", "3"]
    config = config_of(words)
    assert config.objective.transport.power == 3.0
    assert class_path(type(config.objective.transport)) == "mine_of_mine.Mine"
    assert from_dict(Config, to_dict(config)) == config
    with pytest.raises(ValueError, match="--import no_such_module fails"):
        allow_module("no_such_module")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--sampler.steps", "two"], "sampler.steps must be a whole number, got 'two'"),
        (["--sampler.steps", "2.5"], "sampler.steps must be a whole number, got 2.5"),
        (["--optimizer.lr", "x"], "optimizer.lr must be a finite number, got 'x'"),
        (["--optimizer.lr", ".nan"], "optimizer.lr must be a finite number, got nan"),
        (["--optimizer.lr", ".inf"], "optimizer.lr must be a finite number, got inf"),
        (["--optimizer.lr", "1e999"], "optimizer.lr must be a finite number"),
        (["--optimizer.lr", "true"], "optimizer.lr must be a finite number, got True"),
        (["--objective.clamp", ".nan"], "objective.clamp must be a finite number, got nan"),
        (["--train.compile", "3"], "train.compile must be true or false, got 3"),
        (["--ema.tracked", "0.05"], "ema.tracked must be a list, got 0.05"),
        (["--sampler.grid.gap", "[0.1]"], "sampler.grid.gap must be a list of 2 values"),
        (["--train.sharding", "some"], "train.sharding must be one of none, fsdp2"),
        (["--optimizer", "fast"], "optimizer must hold settings, got 'fast'"),
        (["--model", "DiT"], "did you mean DiTConfig?"),
        (["--data", "Transport"], "is not a DataConfig; there are"),
        (["--sampler.transport", "Trig"], "set objective.transport"),
        (["--train.steps"], "--train.steps needs a value"),
        (["train.steps=3"], "unexpected word"),
        (["--trian.steps", "3"], "unknown setting trian; did you mean train?"),
    ],
)
def test_settings_without_a_meaning(words, message):
    with pytest.raises(ValueError) as refused:
        config_of(words)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("5", "must hold sections"),
        ("[1, 2]", "must hold sections"),
        ("", "must hold sections"),
        ("a: [", "not readable YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable YAML"),
        ("model: {class_path: 5}", "model.class_path must be the name of a class, got 5"),
        ("model: {class_path: DiTConfig, init_args: 5}", "model.init_args must hold settings"),
        ("model: {class_path: DiTConfig, init_args: {sincos: 'yes'}}", "sincos must be true or"),
        ("train: 5", "train must hold settings"),
        ("5: 5", "no name of a setting"),
        ("a: &a [*a]", "too deep"),
        ("x: " + "[" * 60 + "]" * 60, "too deep"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n"
                for a, b in zip("abcdefg", "bcdefgh", strict=True)
            ),
            "too many values",
        ),
    ],
    ids=range(13),
)
def test_files_that_are_no_configuration(text, message, tmp_path):
    path = write(tmp_path / "c.yaml", text)
    with pytest.raises(ValueError, match=message):
        config_of(["--config", path])
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "c.yaml")


def test_what_is_no_regular_small_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no regular file"):
        read_yaml(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no regular file"):
        read_yaml(tmp_path)
    with pytest.raises(ValueError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "large.yaml").write_text("#" * (1 << 21))
    with pytest.raises(ValueError, match="too large"):
        read_yaml(tmp_path / "large.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        read_yaml(tmp_path / "bytes.yaml")


def test_a_section_keeps_the_settings_of_its_class_and_drops_those_of_another(tmp_path):
    one = write(tmp_path / "1.yaml", "model: {class_path: DiTConfig, init_args: {size: B/2}}")
    two = write(tmp_path / "2.yaml", "model: {init_args: {second_time: true}}")
    assert config_of(["--config", one, "--config", two]).model == ucgm.nn.DiTConfig(
        size="B/2", second_time=True
    )
    assert config_of(["--config", one, "--model", "DDTConfig"]).model == ucgm.nn.DDTConfig()
    short = config_of(["--data", "Images", "--data.path", "x", "--data.size", "28"])
    assert short.data == ucgm.data.Images(path="x", size=28)


def test_flags_over_a_run_are_a_change_of_its_configuration():
    base = config_of(["--objective.preset", "ucgm_few", "--model.size", "T/2"])
    changed = config_of(["--train.steps", "7", "--objective.enhancement_ratio", "1.5"], base)
    assert changed.train.steps == 7 and changed.model == base.model
    assert changed.objective == ucgm.preset("ucgm_few", enhancement_ratio=1.5)
