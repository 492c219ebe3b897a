"""`ucgm train --help-all` lists every setting there is, and no other; short helps look alike."""

import dataclasses
import gc
import inspect
import re
from pathlib import Path

import pytest

from tests.runs.test_recipes import drawings
from ucgm.cli import commands as cli
from ucgm.cli.settings import help_of_settings
from ucgm.data import DataConfig, Images
from ucgm.data.sets.digits import DigitsDataset
from ucgm.nn import DiTConfig, NetworkConfig
from ucgm.runs.config import Config, flat
from ucgm.runs.fitted import DEFAULTS, FITTED, fitted_layer
from ucgm.runs.layers import layers_of, training_config

HELPS = sorted(Path(cli.__file__).parent.glob("help_texts/*.txt"))


@pytest.fixture
def listed(capsys):
    cli.main(["train", "--help-all"])
    return capsys.readouterr().out


def concrete(cls):
    found = [] if inspect.isabstract(cls) else [cls]
    return found + [c for sub in cls.__subclasses__() for c in concrete(sub)]


def test_every_setting_is_listed_with_its_meaning(listed):
    options = set(re.findall(r"(?m)^  --([\w.]+)", listed))
    for section, base in (("model", NetworkConfig), ("data", DataConfig)):
        for cls in concrete(base):
            if cls.__module__.startswith("ucgm."):
                names = {f"{section}.{f.name}" for f in dataclasses.fields(cls) if f.init}
                assert names <= options, cls
    plain = {k.removesuffix(".class_path") for k in flat(Config())} - {"alignment"}
    inner = re.compile(r"(objective\.time_law|sampler\.restart|model|data)(\.|$)")
    assert {k for k in plain if not inner.match(k)} <= options
    assert "side of the square in pixels; the crop is that of ADM (64)" in listed
    assert "LogitNormal(mean, std)" in listed and "--objective.field data|enhanced|" in listed


def test_nothing_is_listed_that_does_not_work(listed):
    assert "usage:" not in listed and ".help" not in listed
    assert "--run-dir" in listed and "--run_dir" not in listed
    assert listed.index("(fitted)") < 700 and len(listed.splitlines()) < 600


def test_defaults_are_those_that_a_user_gets(listed):
    text = " ".join(listed.split())
    assert "started from (multi_step)" in text and "optimizer steps (fitted)" in text
    assert "parts (fitted) --model.hidden_size" in text and "XL/2" not in text
    assert "largest gradient norm; null: no clipping (1.0)" in text


def test_what_is_called_fitted_is_what_may_be_fitted(tmp_path):
    chosen = set()
    for name in (*DEFAULTS, "flow_matching"):
        for device in ("cpu", "cuda"):
            config = training_config(layers_of(["--objective.preset", name]))[0]
            layer = fitted_layer(DigitsDataset("train"), device, config, False, ())
            chosen |= {f"{section}.{key}" for section, part in layer.items() for key in part}
    drawn, _ = training_config(layers_of(drawings(tmp_path / "drawn", 0.8)))
    for preset in DEFAULTS:
        objective = dataclasses.replace(drawn.objective, preset=preset)
        config = dataclasses.replace(drawn, model=DiTConfig(), objective=objective)
        started = dataclasses.replace(config.train, init="run" if preset == "few_step" else None)
        config = dataclasses.replace(config, train=started)
        layer = fitted_layer(drawn.data.open(), "cpu", config, False, ())
        chosen |= {f"{section}.{key}" for section, part in layer.items() for key in part}
    assert chosen == FITTED


@pytest.mark.parametrize("path", HELPS, ids=lambda path: path.stem)
def test_short_helps_write_defaults_in_parentheses(path):
    options = re.findall(r"(?m)^  --.*$", path.read_text())
    assert [line for line in options if re.search(r"(;|\s{2,}) *[\d.]+$", line)] == []


def test_the_short_help_says_where_the_size_of_a_training_comes_from():
    text = (Path(cli.__file__).parent / "help_texts/train.txt").read_text()
    assert "follow from the data, the device and the network" in " ".join(text.split())


def test_a_class_of_a_notebook_has_no_file_and_is_listed():
    text = "@dataclass(frozen=True)\nclass Noted(Images):\n    k: int = 3\n    'of a notebook.'\n"
    made = {"dataclass": dataclasses.dataclass, "Images": Images, "__name__": "builtins"}
    exec(text, made)
    assert "--data.k N\n" in help_of_settings()
    del made
    gc.collect()  # out of the subclasses that other tests list
