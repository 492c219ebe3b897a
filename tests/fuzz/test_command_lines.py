"""Random words for every command: its function is called with values of their types, or one line.

The work itself is left out: what a command does with good values is tested elsewhere, and what it
does with every file is in the other fuzzers.
"""

import dataclasses
import importlib
import inspect
import math
import typing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ucgm.training.loop
from tests.fuzz.rules import right_or_one_line
from ucgm.cli import commands as cli
from ucgm.runs.config import Config, flat, from_dict, to_dict
from ucgm.runtime.values import checked

VALUES = st.sampled_from(
    ["", "0", "1", "-1", "2", "two", "1e3", "1e-4", "nan", ".nan", "inf", "-.inf", "true", "null"]
    + ["1e999", "9" * 5000, "1:" * 500 + "1", "[", "[1, 2]", "[nan]", "{a: 1}", "{", "&a [*a]", "x"]
    + ["../x", "/dev/zero", "a\nb", "\x1b[31m", "é", "--", "-", "=", "!!python/name:os.system"]
    + ["Images", "ucgm.nn.EDM2Config", "os.system", "meanflow", "{class_path: 5}", "digits", "png"]
    + ["[0.1, 0.2]", "0.5", "1,2", "3 4", "@file", "*", "%s", "{}", "[]", "~"]
)
TRAIN = sorted(flat(Config()))
MORE = [
    "preset",
    "config",
    "run-dir",
    "import",
    "help",
    "print-config",
    "help-all",
    "x",
    "",
    "model",
]


class Done(Exception):
    """The function of a command was called."""


def words_of(draw, options):
    """A few options, mostly of the command, with any values in any spelling."""
    words = [draw(VALUES) for _ in range(draw(st.integers(0, 2)))]
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(options) | st.sampled_from(MORE))
        name = name.replace("_", "-") if draw(st.booleans()) else name
        value = draw(VALUES)
        forms = [f"--{name}", value], [f"--{name}={value}"], [f"--{name}"], [f"-{name}", value]
        words += draw(st.sampled_from(forms))
    return words


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words, capsys):
    """What the user sees: nothing, or one line and the exit code 2."""
    with right_or_one_line():
        try:
            cli.main(words)
        except SystemExit as end:
            if end.code == 0 and "--help-all" in words:
                return
            shown = capsys.readouterr().err
            assert end.code == 2, shown
            lines = [line for line in shown.splitlines() if "Warning" not in line]
            assert len(lines) == 1 and lines[0].startswith("ucgm") and len(shown) < 2000, shown
            assert lines[0].isprintable()
        except Done:
            pass


@given(data=st.data())
def test_words_of_a_command(data, here, monkeypatch, capsys):
    name = data.draw(st.sampled_from(sorted(cli._FUNCTIONS)))
    module, attribute = cli._FUNCTIONS[name]
    function = getattr(importlib.import_module(module), attribute)
    hints = typing.get_type_hints(function, include_extras=True)
    options = [n for n in hints if n not in ("return", "settings", "changes")]
    for hint in list(hints.values()):
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind):
                hints |= (inner := typing.get_type_hints(kind, include_extras=True))
                options += list(inner)
    options += ["sampler.steps", "guidance.scale", "sampler.grid.gap"] * ("changes" in hints)
    seen = []

    def called(**named):
        seen.append(named)
        raise Done

    called.__signature__ = inspect.signature(function)
    called.__annotations__, called.__doc__ = function.__annotations__, function.__doc__
    called.__module__, called.__qualname__ = function.__module__, function.__qualname__
    called.__wrapped__ = function
    monkeypatch.setattr(importlib.import_module(module), attribute, called)
    run([name, *words_of(data.draw, options)], capsys)
    for given_values in seen:
        for key, value in given_values.items():
            if dataclasses.is_dataclass(value):
                continue
            checked(hints[key], value, key)
            numbers = value if isinstance(value, list | tuple) else [value]
            assert all(math.isfinite(v) for v in numbers if isinstance(v, float))
    assert not list(here.iterdir())


@given(data=st.data())
@example(data=None)
def test_words_of_a_training(data, here, monkeypatch, capsys):
    seen = []

    def called(config, run_dir):
        seen.append(config)
        raise Done

    monkeypatch.setattr(ucgm.training.loop, "train", called)
    words = ["--model.depth", "1000000000", "--run-dir", "x"]
    if data is not None:
        words = words_of(data.draw, TRAIN)
        if data.draw(st.booleans()):
            words += ["--run-dir", "run", "--model.size", "N/4", "--data.split", "train"]
    run(["train", *words], capsys)
    for config in seen:
        assert from_dict(Config, to_dict(config)) == config
        assert all(math.isfinite(v) for v in flat(config).values() if isinstance(v, float))
    assert not list(here.iterdir())
