"""Bad input, full disks and kills: one line, nothing left, and the same set at the next run."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from ucgm.cli.commands import main
from ucgm.condense import CondenseConfig, condensed, observe
from ucgm.condense.build import condense_pool
from ucgm.condense.command import condense
from ucgm.condense.observe import ExtractorObserver
from ucgm.condense.pool import Pool, open_real
from ucgm.evaluation.extractors import open_extractor

REPO = Path(__file__).parents[2]
WORDS = ["--ipc", "2", "--observer-steps", "40", "--label-views", "2"]


def refused(capsys, *words):
    """The line with which a command ends."""
    with pytest.raises(SystemExit) as end:
        main(["condense", *map(str, words)])
    *progress, line = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and not any("Traceback" in said for said in progress)
    return line.removeprefix("ucgm condense: error: ")


def folders(path, classes, count, shape=(8, 8)):
    rng = np.random.default_rng(0)
    for k in range(classes * count):
        place = path / str(k % classes)
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{k // classes:03d}.png")
    return path


@pytest.mark.parametrize(
    ("classes", "count", "shape", "words", "said"),
    [
        (10, 4, (8, 8), [], "has 4 images of class 0 and every fifth is kept for the test"),
        (1, 20, (8, 8), [], "has 1 classes: condensation needs labelled images of two classes"),
        (3, 10, (8, 8), ["--observer", "digits"], "observer digits knows 10 classes and"),
        (10, 6, (16, 16), ["--observer", "digits"], "digits takes images of 8x8 pixels, got 16x16"),
        (10, 6, (8, 8, 3), ["--observer", "digits"], r"digits takes \(N, 1, H, W\) uint8 images"),
        (10, 6, (8, 8), ["--ipc", "6", "--accept", "false", "--observer-steps", "200"],
         "class 0 has 5 candidates of the 6 that 6 images need, of 5 that were looked at"),
    ],
)  # fmt: skip
def test_images_and_observers_that_do_not_do(tmp_path, capsys, classes, count, shape, words, said):
    folders(tmp_path / "data", classes, count, shape)
    line = refused(capsys, tmp_path / "data", tmp_path / "out", *WORDS, *words)
    assert re.search(said, line), line
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


class Wrong(Pool):
    """Endless images of the next class."""

    def __init__(self, images):
        self.images = images

    def candidates(self, label, start, count):
        other = self.images.pixels[self.images.labels == (label + 1) % 10]
        return other[torch.arange(start, start + count) % len(other)], ["x:0"] * count

    def identity(self):
        return {}


def test_a_pool_that_accepts_nothing_ends(capsys):
    digits = open_real("digits")
    judge = ExtractorObserver(open_extractor("digits"))
    config = CondenseConfig(pool_per_class=20, max_rounds=3)
    said = "class 0 has 0 candidates of the 10 that 10 images need, of 60 that were looked at.*"
    with pytest.raises(ValueError, match=said + "or take all with --accept false"):
        condense_pool(Wrong(digits), digits, judge, config)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_safetensors(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device")


def after(count, original):
    """``original``, and from the call ``count`` on no space."""
    left = iter(range(count))
    return lambda *words, **options: (
        full() if next(left, None) is None else original(*words, **options)
    )


@pytest.mark.parametrize("where", ["an image", "the labels", "the observer"])
def test_no_space_left_leaves_nothing_and_loses_nothing(tmp_path, capsys, monkeypatch, where):
    with monkeypatch.context() as patch:
        if where == "an image":
            patch.setattr(Image.Image, "save", after(7, Image.Image.save))
        else:
            module = condensed if where == "the labels" else observe
            patch.setattr(module, "save_file", full_for_safetensors)
        line = refused(capsys, "digits", tmp_path / "out", *WORDS)
    assert "the set could not be written" in line and "No space left on device" in line
    assert list(tmp_path.iterdir()) == []
    if where == "an image":  # and an evaluation that was there stays
        main(["condense", "digits", str(tmp_path / "out"), *WORDS])
        few = ["evaluate", str(tmp_path / "out"), "--seeds", "1", "--steps", "2"]
        main(["condense", *few, "--full-steps", "2"])
        before = contents(tmp_path)
        assert "out/evaluation.json" in before
        monkeypatch.setattr("ucgm.runtime.files.sync", full)
        line = refused(capsys, *few, "--full-steps", "3")
        assert "evaluation.json could not be written" in line
        assert contents(tmp_path) == before


def made(folder):
    settings = CondenseConfig(ipc=2, label_views=2)
    return condense("digits", str(folder), settings=settings, observer_steps=40)


KILLED = """
import os, pathlib, signal, sys
from tests.condense.test_failures import made, observe
observe.save_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
made(pathlib.Path(sys.argv[1]))
"""


def test_killed_in_the_middle_and_run_again(tmp_path):
    # Images and labels are written when the observer is. A fork of this process, which has made
    # gradients, could make none.
    words = [sys.executable, "-c", KILLED, str(tmp_path / "killed" / "set")]
    assert subprocess.run(words, cwd=REPO, capture_output=True).returncode == -signal.SIGKILL
    left = {p.name for p in (tmp_path / "killed").iterdir()}
    assert left == {".set.lock", ".set.tmp"}
    one, two = (contents(made(tmp_path / name / "set").parent) for name in ("killed", "whole"))
    clocks = [found.pop("set/condensed.json") for found in (one, two)]
    assert one == two and len(one) == 20 + 3  # labels, observer, sheet
    same = [json.loads(text) for text in clocks]
    for said in same:
        said.pop("made"), said.pop("seconds")
    assert same[0] == same[1]
