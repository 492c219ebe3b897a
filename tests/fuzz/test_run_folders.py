"""Run folders of strangers: a file was changed, cut, forged, or is none any more.

Opening, sampling and resuming do what they did before, or refuse in one line; a log never keeps a
run from going on.
"""

import hashlib
import json
import math
import os
import shutil
import warnings
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.rules import right_or_one_line, state_of
from tests.training.test_train import tiny
from ucgm import load_run
from ucgm.runs.averages import find_snapshots, make_averages
from ucgm.runs.config import read_config
from ucgm.runs.settings import EMAConfig, OptimizerConfig
from ucgm.training.loop import train
from ucgm.training.plot import plot_runs

STEP = "checkpoints/step_0000002"
FILES = [
    *["config.yaml"] * 6,
    *[f"{STEP}/manifest.json"] * 4,
    *["data.json", "metrics.jsonl", "latest"],
    *[f"{STEP}/{name}.safetensors" for name in ("ema", "network", "optimizer")],
    "ema/step_0000002_std_0.100.safetensors",
]
VALUES = st.sampled_from(
    [None, True, -1, 0, 5, 10**12, 10**30, 10**5000, 0.5, math.nan, math.inf, 1e300, "", "x", "two"]
    + [
        "../x",
        "/dev/zero",
        "a\0b",
        "\ud800",
        [],
        {},
        [[]],
        [1, 2],
        {"a": 1},
        [0.0] * 3,
        [10**9] * 3,
    ]
    + ["ucgm.nn.DiTConfig", {"class_path": "EDM2Config", "init_args": {"size": "XS"}}]
)
TEXTS = st.sampled_from(
    [b"", b"5\n", b"null\n", b"[1,2]\n", b"{}\n", b"{", b"\xff\xfe\n", b"[" * 9999, b"9" * 9999]
    + [b'{"step": "x"}\n', b'{"step": NaN}\n', b"a: &a [*a]\n", b"a: 1" + b":1" * 9999, b"- " * 999]
)
BYTES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    config = tiny(steps=2, global_batch=4, checkpoint_every=2)
    config = replace(config, ema=EMAConfig(tracked=(0.05, 0.1), snapshot_every=1))
    config = replace(config, optimizer=OptimizerConfig())
    return train(config, tmp_path_factory.mktemp("whole") / "run")


def places(value, path=()):
    """Every place in a tree of plain values."""
    yield path
    inner = dict(enumerate(value)) if isinstance(value, list) else value
    for key, child in inner.items() if isinstance(inner, dict) else ():
        yield from places(child, (*path, key))


def change_field(path, draw):
    text = path.read_text()
    content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    place = draw(st.sampled_from(list(places(content))[1:]))
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if draw(st.integers(0, 4)):
        inner[place[-1]] = draw(VALUES)
    else:
        del inner[place[-1]]
    try:
        path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    except ValueError:  # a number that nobody can print
        path.write_text("9" * 9999)


def change_bytes(path, draw):
    content = bytearray(path.read_bytes())
    for where, bit in draw(BYTES):
        size = min(len(content), 600) if draw(st.booleans()) else len(content)
        content[int(where * size)] ^= bit
    cut = draw(st.one_of(st.none(), st.integers(0, len(content))))
    path.write_bytes(content[:cut] + draw(st.binary(max_size=3)))


def change_kind(path, draw):
    path.unlink()
    kind = draw(st.sampled_from(["none", "folder", "pipe", "endless", "circle", "text"]))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("endless", "circle"):
        path.symlink_to("/dev/zero" if kind == "endless" else path)
    elif kind == "text":
        path.write_bytes(draw(TEXTS))


def forge(run, path):
    """The manifest says what the file is now: whoever changes one can change both."""
    manifest = run / STEP / "manifest.json"
    content = json.loads(manifest.read_text())
    data = path.read_bytes()
    content["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(content))


@given(data=st.data())
def test_a_changed_run_does_as_before_or_says_one_line(whole, tmp_path_factory, data):
    run = tmp_path_factory.mktemp("changed") / "run"
    shutil.copytree(whole, run)
    name = data.draw(st.sampled_from(FILES))
    path, draw = run / name, data.draw
    if path.suffix in (".json", ".yaml") and draw(st.integers(0, 3)):
        change_field(path, draw)
    elif draw(st.booleans()):
        change_kind(path, draw)
    else:
        if name == "metrics.jsonl":
            path.write_bytes(path.read_bytes() + draw(TEXTS))
        change_bytes(path, draw)
    if name.startswith(STEP) and path.suffix == ".safetensors" and path.is_file():
        forge(run, path) if draw(st.booleans()) and not path.is_symlink() else None
    before = state_of(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with right_or_one_line():
            images = load_run(run).sample(2, steps=1)
            assert len(images) == 2
        with right_or_one_line():
            find_snapshots(run)
        if name == "metrics.jsonl":
            with right_or_one_line():
                plot_runs([str(run)], str(run.parent / "curves.png"), ["loss", "loss_by_time"])
        assert state_of(run) == before
        config = read_config(whole / "config.yaml")
        config = replace(config, train=replace(config.train, steps=3))
        if name == "metrics.jsonl" and (path.is_file() or not os.path.lexists(path)):
            assert train(config, run) == run
            assert json.loads((run / name).read_text().splitlines()[-1])["step"] == 3
        elif not draw(st.integers(0, 4)):
            with right_or_one_line():
                train(config, run)
            with right_or_one_line():
                make_averages(str(run), [0.1])
    assert {p.name for p in run.parent.iterdir()} <= {"run", "curves.png"}
    shutil.rmtree(run.parent)
