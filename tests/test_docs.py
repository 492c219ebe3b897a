"""The guides are true: tables are what the commands print, and the Python in them runs."""

import re
from pathlib import Path

import pytest
import torch

from ucgm.runs.presets import preset_table

REPO = Path(__file__).parents[1]


def test_preset_table_is_what_the_command_prints():
    assert preset_table() in (REPO / "docs/objective.md").read_text()


@pytest.mark.parametrize("page", sorted(REPO.glob("docs/*.md")), ids=lambda p: p.stem)
def test_python_blocks_run(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(compile(block, str(page), "exec"), {"torch": torch})


def test_the_page_on_security_names_tests_that_are_there():
    page = (REPO / "docs/security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named) > 20 and page.count("::test_") == len(named)
    for file, test in named:
        assert f"\ndef {test}(" in (REPO / file).read_text(), f"{file}::{test}"
    for path in re.findall(r"`([a-z]\w+/[\w/]+\.py)`", page.replace("`tests/", "")):
        assert (REPO / "ucgm" / path.removeprefix("ucgm/")).is_file(), path
