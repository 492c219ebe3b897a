"""Progress of images on a terminal and in a file."""

import io
import sys

import pytest

from ucgm.runtime.processes import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, output, silent=False):
    monkeypatch.setattr(sys, "stdout", output)
    progress = Progress(4000, "encoding", silent)
    progress.skip(1000)
    for _ in range(3):
        progress.add(1000)
    del progress
    return output.getvalue()


@pytest.mark.parametrize("output", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_progress_says_count_rate_and_time_left(monkeypatch, output):
    text = shown(monkeypatch, output)
    assert "encoding 3,000/3,000 images, " in text and "/s, 00:00 left" in text
    assert text.endswith("\n")
    assert output.isatty() or text.count("\n") == 1 and "\r" not in text


def test_other_processes_are_silent(monkeypatch):
    assert shown(monkeypatch, io.StringIO(), silent=True) == ""
    assert shown(monkeypatch, Terminal(), silent=True) == ""
