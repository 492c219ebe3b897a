"""Reference files of strangers, npz and pkl: statistics that are finite, or one line; no code."""

import io
import json
import math
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.rules import right_or_one_line, state_of
from tests.fuzz.test_run_folders import BYTES, TEXTS
from ucgm.evaluation.metrics import Reference, load_reference, moments_of, save_reference

pytestmark = pytest.mark.filterwarnings("ignore")

GAUSSIAN = moments_of(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
MU, SIGMA = GAUSSIAN.mean.numpy(), GAUSSIAN.covariance.numpy()
ARRAYS = [MU, SIGMA, MU[:3], SIGMA[None], MU.astype(np.float32), MU.astype(np.float16), MU[:0]]
ARRAYS += [MU * np.nan, np.full((4, 4), np.inf), np.array(3.0), np.zeros((3, 4), np.complex128)]
ARRAYS += [np.array(["a", "b"]), np.array([1, 2, 3, 4]), SIGMA.astype(">f8"), SIGMA[::-1].T]
ARRAYS += [np.zeros(4, "M8[s]"), np.zeros(2, "f8,i4"), np.array([{}, None], object), SIGMA * 1e308]
ARRAYS += [np.zeros((4, 4)), -SIGMA, np.zeros((0, 0)), np.array(b"x"), np.ones((4, 4), bool)]
KEYS = ["mu", "sigma", "mu_s", "sigma_s", "ref_mu", "ref_sigma", "features", "arr_0", "protocol"]
VALUES = [None, True, 0, 1, 2, 50, -3, 10**30, 0.5, math.nan, "", "digits", "os:abort", [], {}]
CODES = list(b"(.02FIJKLMNRSTUVX]a}bcdegh}iloqrstu\x80\x81\x85\x8c\x93\x94")
FIELDS = ["name", "extractor", "extractor_sha256", "extractor_spec", "num_samples", "x"]


def names_its_file(path):
    """The reference, whose numbers are finite; or an error that names the file."""
    try:
        found = load_reference(path)
    except ValueError as error:
        assert path.name in str(error)
        raise
    assert torch.isfinite(found.gaussian.mean).all()
    assert found.gaussian.covariance.dtype == torch.float64 and isinstance(found.name, str)
    found.check("digits", "0", found.gaussian.dimension)


def changes(draw):
    """How many things are wrong: often none, so that whole files are read too."""
    return draw(st.sampled_from([0, 0, 1, 1, 2, 3]))


def damaged(draw, content):
    """Bytes with some changed and an end cut off, or other bytes; mostly as they are."""
    kind = draw(st.sampled_from(["whole"] * 9 + ["bytes", "bytes", "cut", "other"]))
    changed = bytearray(content)
    for where, bit in draw(BYTES) if kind == "bytes" else ():
        changed[int(where * len(changed))] ^= bit
    if kind == "cut":
        del changed[draw(st.integers(0, len(changed))) :]
    return draw(TEXTS) if kind == "other" else bytes(changed)


def header(array, **changes):
    """The bytes of a .npy whose header says something else."""
    file = io.BytesIO()
    said = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **changes}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue() + array.tobytes()


@given(data=st.data())
def test_an_npz_becomes_statistics_or_one_line(tmp_path_factory, data):
    draw, folder = data.draw, tmp_path_factory.mktemp("npz")
    path = folder / "reference.npz"
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    save_reference(path, Reference("r", GAUSSIAN, "", GAUSSIAN, rows, ("digits", "0")))
    with np.load(path) as file:
        arrays = dict(file)
    protocol = json.loads(str(arrays["protocol"]))
    for _ in range(changes(draw)):
        protocol[draw(st.sampled_from(FIELDS))] = draw(st.sampled_from(VALUES))
    texts = st.sampled_from([json.dumps(protocol)] * 15 + ["", "3", "[]", "{", "[" * 99999, "\0"])
    arrays["protocol"] = np.array(draw(texts))
    for _ in range(changes(draw)):
        key = draw(st.sampled_from(KEYS))
        if draw(st.booleans()):
            arrays.pop(key, None)
        else:
            arrays[key] = draw(st.sampled_from(ARRAYS))
    kind = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))
    with zipfile.ZipFile(path, "w", kind) as archive:
        for key, array in arrays.items():
            file = io.BytesIO()
            np.lib.format.write_array(file, array)
            content = file.getvalue()
            kind = draw(st.sampled_from(["whole"] * 20 + ["damaged", "header", "twice"]))
            if kind == "damaged":
                content = damaged(draw, content)
            if kind == "header" and array.dtype != object:
                shapes = [(4,), (-4,), (10**15,), (2**62, 4), (4, 0), ("4",), (4.0,)]
                content = header(array, shape=draw(st.sampled_from(shapes)))
            archive.writestr(f"{key}.npy", content)
            if kind == "twice":
                archive.writestr(draw(st.sampled_from([f"{key}.npy", key, "../x.npy"])), content)
    path.write_bytes(damaged(draw, path.read_bytes()))
    before = state_of(folder)
    with right_or_one_line():
        names_its_file(path)
    assert state_of(folder) == before
    shutil.rmtree(folder)


class Call:
    """An object that a pickle restores by a call, and a state."""

    def __init__(self, function, arguments, *state):
        self.parts = (function, arguments, *state)

    def __reduce__(self):
        return self.parts


def forged(draw, marker):
    """What may stand in place of an array."""
    make = np.zeros(1).__reduce__()[0]
    flags = st.sampled_from(
        [(3, "<", None, None, None, -1, -1, 0), (3, "|", None, (), {}, 8, 1, 63)]
    )
    fields = (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0)
    kind = draw(st.sampled_from(["f8", "f4", "f2", "V8", "O", "O8", "U4", "i8", "f16", ""]))
    state = fields if draw(st.booleans()) else draw(flags)
    dtype = Call(np.dtype, (kind, False, True), state)
    shape = draw(st.sampled_from([(1,), (4,), (), (-1,), (2**62,), (0, 3), ("a",), 4, [4], (4.0,)]))
    content = draw(st.sampled_from([b"\1" * 8, MU.tobytes(), b"", "x", [None], 5, None]))
    array = Call(make, (np.ndarray, (0,), b"b"), (1, shape, dtype, draw(st.booleans()), content))
    nested = []
    nested.append(nested)
    return draw(
        st.sampled_from(
            [array, array, array, dtype, nested, {1: MU}, {MU.tobytes(): 1}, [MU], 5, None, "mu"]
            + [Call(os.mkdir, (str(marker),)), Call(eval, (f"__import__('os').mkdir('{marker}')",))]
            + [Call(make, (np.ndarray, (0,), b"b")), Call(np.ndarray, ((10**9,),)), np.float64(3)]
        )
    )


@given(data=st.data())
def test_a_pickle_becomes_statistics_or_one_line_and_runs_nothing(tmp_path_factory, data):
    draw, folder = data.draw, tmp_path_factory.mktemp("pkl")
    path, marker = folder / "reference.pkl", folder / "executed"
    entry = {"mu": draw(st.sampled_from([MU, MU.astype(np.float32)])), "sigma": SIGMA}
    for _ in range(changes(draw)):
        value = forged(draw, marker) if draw(st.booleans()) else draw(st.sampled_from(ARRAYS))
        entry[draw(st.sampled_from(["mu", "sigma", "x"]))] = value
    content = {"fid": entry} if draw(st.booleans()) else entry
    if draw(st.sampled_from([False] * 9 + [True])):
        content = {"fid": forged(draw, marker), "fd_dinov2": entry}
    text = bytearray(pickle.dumps(content, draw(st.sampled_from([0, 1, 2, 3, 4, 4, 5, 5]))))
    for _ in range(draw(st.sampled_from([0] * 8 + [1, 2, 3]))):
        where = draw(st.integers(0, len(text) - 1))
        code = draw(st.sampled_from(CODES))
        if draw(st.booleans()):
            text[where] = code
        else:
            text[where:where] = bytes([code])
    path.write_bytes(damaged(draw, bytes(text)))
    with right_or_one_line():
        names_its_file(path)
    assert [p.name for p in folder.iterdir()] == ["reference.pkl"]
    shutil.rmtree(folder)
