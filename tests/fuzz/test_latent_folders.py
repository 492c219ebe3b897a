"""Latent folders whose bytes and fields were changed: the same rows, or one line that refuses."""

import contextlib
import io
import json
import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_loader import make_set
from tests.data.toys import folder_bytes
from ucgm.data.encoding.check import describe_data
from ucgm.data.sets.latent_shards import Latents

VALUES = st.sampled_from(
    [None, True, -1, 0, 5, 10**12, 10**30, 0.5, math.nan, math.inf, "", "x", "../x", "/dev/zero"]
    + ["a\0b", [], {}, [[]], [1, 2], {"a": 1}, ["a", "b", "c", "d", "e"], [math.nan] * 2, [0.0] * 2]
)
BYTES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4)
FILES = ("codec.json", "manifest.json", "shard_00000.safetensors", "shard_00001.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = make_set(tmp_path_factory.mktemp("whole") / "set", rows=(5, 6))
    return folder, Latents(str(folder)).open().read(range(22))


def places(value, path=()):
    """Every place in a tree of JSON values."""
    yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, child in value.items() if isinstance(value, dict) else ():
        yield from places(child, (*path, key))


def change_field(path, draw):
    content = json.loads(path.read_text())
    place = draw(st.sampled_from(list(places(content))))
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if not place:
        content = draw(VALUES)
    elif draw(st.booleans()):
        inner[place[-1]] = draw(VALUES)
    else:
        del inner[place[-1]]
    path.write_text(json.dumps(content))


@given(data=st.data())
def test_a_changed_folder_gives_its_rows_or_one_line(whole, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("changed") / "set"
    shutil.copytree(whole[0], folder)
    path = folder / data.draw(st.sampled_from(FILES))
    if path.suffix == ".json" and data.draw(st.booleans()):
        change_field(path, data.draw)
    else:
        content = bytearray(path.read_bytes())
        for where, bit in data.draw(BYTES):
            # Headers and their lengths break in more ways than rows do.
            size = min(len(content), 600) if data.draw(st.booleans()) else len(content)
            content[int(where * size)] ^= bit
        cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
        path.write_bytes(content[:cut] + data.draw(st.binary(max_size=3)))
    before = folder_bytes(folder)
    try:
        stored, labels = Latents(str(folder)).open().read(range(22))
        assert torch.equal(stored, whole[1][0]) and torch.equal(labels, whole[1][1])
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            describe_data(str(folder), str(folder.parent / "report"), images=0)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    assert folder_bytes(folder) == before
    shutil.rmtree(folder.parent)
