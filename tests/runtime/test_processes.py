"""Progress of images on a terminal and in a file."""

import io
import os
import sys
import warnings

import pytest

from ucgm.runtime import processes
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


def test_more_processes_than_cores_without_a_gpu_are_said(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.warns(UserWarning, match="8 processes share 2 CPU cores, and no GPU is used"):
        processes._check_number(8, 8, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processes._check_number(8, 8, "cuda:0")
        processes._check_number(2, 2, "cpu")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # on each of four machines
        processes._check_number(8, 8, "cpu")
