"""The guides are true: tables are what the commands print, and the Python in them runs."""

import dataclasses
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ucgm.cli.commands import _FUNCTIONS, _OF_SETS, COMMANDS, main
from ucgm.cli.options import call, take_option
from ucgm.runs.config import Config
from ucgm.runs.presets import preset_table

REPO = Path(__file__).parents[1]
SECTIONS = {field.name for field in dataclasses.fields(Config)}


def test_preset_table_is_what_the_command_prints():
    assert preset_table() in (REPO / "docs/objective.md").read_text()


@pytest.mark.parametrize("page", sorted(REPO.glob("docs/*.md")), ids=lambda p: p.stem)
def test_python_blocks_run(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(compile(block, str(page), "exec"), {"torch": torch})


def commands_of(page):
    """Words after ``ucgm`` of every command in the code of a page, continued lines joined."""
    text = page.read_text().replace("\\\n", " ")
    code = "\n".join(re.findall(r"```(?:bash)?\n(.*?)```", text, re.S))
    code += "\n".join(re.findall(r"(?m)^ {4}(ucgm .*)$", text))
    for line in re.findall(r"(?m)(?:^|-m )ucgm ([a-z].*)$", code):
        yield shlex.split(line.replace("...", "").replace("[options]", ""), comments=True)


@pytest.mark.parametrize(
    "page", [REPO / "README.md", *sorted(REPO.glob("docs/*.md"))], ids=lambda p: p.stem
)
def test_commands_have_the_options_that_they_are_shown_with(page):
    """Parsed as the command parses them; nothing is run."""
    for command, *words in commands_of(page):
        assert command in COMMANDS, (command, words)
        words = take_option(words, "import")[1]
        if command == "train":
            paths = [b for a, b in zip(words, words[1:], strict=False) if a == "--config"]
            assert all(Path(REPO, p).is_file() for p in paths if p.startswith("configs/")), paths
            flags = [w for w in words if w.startswith("--") and "." in w]
            assert {w[2:].split(".")[0] for w in flags} <= SECTIONS, flags
            continue
        module, name = _FUNCTIONS[command]
        if command == "condense" and words[0] in _OF_SETS:
            (module, name), words = _OF_SETS[words[0]], words[1:]
        function = getattr(importlib.import_module(module), name)
        call(functools.wraps(function)(lambda **_: None), f"ucgm {command}", words)


def test_a_network_of_the_users_own_walks_the_road(tmp_path, monkeypatch, capsys):
    """The block of docs/extend.md as a file: train, tune, sample; export says what it misses."""
    page = (REPO / "docs/extend.md").read_text().split("## A network")[1]
    (tmp_path / "mixer.py").write_text(re.search(r"```python\n(.*?)```", page, re.S)[1])
    monkeypatch.chdir(tmp_path)
    own = ["--import", "mixer"]
    train = ["train", *own, "--data", "Digits", "--train.steps", "3", "--train.global_batch", "8"]
    main([*train, "--model.class_path", "mixer.MixerConfig", "--run-dir", "run"])
    main([*train, "--objective.preset", "ucgm_few", "--train.init", "run", "--run-dir", "few"])
    main(["sample", "few", *own, "--num-images", "4"])
    assert len(list(tmp_path.glob("few/samples/*/images/*.png"))) == 4
    with pytest.raises(SystemExit):
        main(["export", "run", *own, "--diffusers", "out"])
    assert "Mixer is no model of diffusers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_site_builds_without_a_warning(tmp_path):
    """What scripts/docs.sh does: pages, links, anchors and docstrings."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "consistency_ratio" in (tmp_path / "reference/index.html").read_text()


@pytest.mark.parametrize("package", ["objective", "sampler", "nn", "data", "integrations"])
def test_the_reference_has_every_public_name(package):
    page = (REPO / "docs/reference.md").read_text()
    text = (REPO / "ucgm" / package / "__init__.py").read_text()
    names = re.findall(r"^from (\S+) import (\w+) as \2$", text, re.M)
    assert len(names) > 3
    for module, name in names:
        assert f"::: {module}.{name}\n" in page, f"{module}.{name}"


def test_the_page_on_security_names_tests_that_are_there():
    page = (REPO / "docs/security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named) > 20 and page.count("::test_") == len(named)
    for file, test in named:
        assert f"\ndef {test}(" in (REPO / file).read_text(), f"{file}::{test}"
    for path in re.findall(r"`([a-z]\w+/[\w/]+\.py)`", page.replace("`tests/", "")):
        assert (REPO / "ucgm" / path.removeprefix("ucgm/")).is_file(), path
