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


@pytest.mark.parametrize("mine, whole", [(32, 40), (20, 40), (3, 7)])
def test_the_first_process_counts_for_all(monkeypatch, mine, whole):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    progress = Progress(mine, "4 steps:", whole=whole)
    for _ in range(mine):
        progress.add(1)
    assert f"4 steps: {whole}/{whole} images" in output.getvalue()


def test_work_that_was_there_is_left_out_for_all(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    progress = Progress(20, "x", whole=60)
    progress.skip(10)
    progress.add(10)
    assert "x 30/30 images" in output.getvalue()
