"""Weight files of strangers under `ucgm import`: a run that samples, or one line; never both."""

import json
import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.fuzz.rules import right_or_one_line, state_of
from tests.fuzz.test_run_folders import BYTES, TEXTS
from tests.runs.test_import import GOLDEN
from ucgm import load_run
from ucgm.runs.imported import import_run

NAMES = {"dit": {"num_heads": 4}, "lightningdit": {}, "ddt": {"input_size": 8, "encoder_depth": 1}}
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 16, 48, 49]), max_size=5)
ODD = st.sampled_from(
    [None, 5, "x", [1], {}, {"a": {}}, math.nan, torch.ones(()), torch.ones(3, dtype=torch.int64)]
    + [
        torch.full((2, 2), math.nan),
        torch.ones(2, 2).to_sparse(),
        torch.ones(3, dtype=torch.cfloat),
    ]
    + [torch.empty(0), [torch.ones(2)], torch.ones(2, 2, device="meta"), torch.ones(2).bool()]
)
SETTINGS = st.dictionaries(
    st.sampled_from(
        ["num_layers", "depth", "hidden_size", "num_attention_heads", "patch_size", "in_channels"]
        + ["sample_size", "num_classes", "mlp_ratio", "which", "x", "use_swiglu", "learn_sigma"]
        + ["num_embeds_ada_norm", "family", "time_scale", "convention", "second_time"]
    ),
    st.sampled_from([None, True, -1, 0, 4, 10**9, 10**30, 0.5, math.nan, "x", [], {}, [4, 4]]),
    max_size=3,
)


@pytest.fixture(scope="module")
def states():
    return {name: load_file(GOLDEN / f"{name}.state.safetensors") for name in NAMES}


def content_of(draw, states, name):
    """What a weight file may hold: a state with changes, wrapped somehow, or something else."""
    state = dict(states[name])
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from(sorted(states[name])))
        change = draw(st.sampled_from(["drop", "shape", "odd", "name", "key"]))
        if change == "drop":
            state.pop(key, None)
        elif change == "shape":
            state[key] = torch.zeros(draw(SHAPES))
        elif change == "odd":
            state[key] = draw(ODD)
        else:
            state[draw(st.sampled_from([0, (1, 2), "", "blocks.99999999999.x", b"x"]))] = state.get(
                key
            )
    kind = draw(st.sampled_from(["flat", "flat", "ema", "model", "state_dict", "itself", "odd"]))
    if kind == "itself":
        state = {"state_dict": state}
        state["state_dict"]["ema"] = state
        return state
    if kind == "odd":
        return draw(st.sampled_from([[1], torch.ones(3), 5, None, {}, {"ema": {}}, {1: {2: 3}}]))
    return state if kind == "flat" else {kind: state, "opt": {"lr": 1}}


@given(data=st.data())
def test_a_weight_file_becomes_a_run_or_one_line(states, tmp_path_factory, data):
    draw, folder = data.draw, tmp_path_factory.mktemp("import")
    name = draw(st.sampled_from(sorted(NAMES)))
    source = folder / "source"
    source.mkdir()
    path = source / draw(st.sampled_from(["w.pt", "w.ckpt", "w.safetensors", "w.bin", "w"]))
    content = content_of(draw, states, name)
    tensors = isinstance(content, dict) and {
        str(k): v.clone().contiguous()
        for k, v in content.items()
        if isinstance(v, torch.Tensor) and v.layout == torch.strided and v.device.type == "cpu"
    }
    if path.suffix == ".safetensors":
        save_file(tensors or {}, path)
    else:
        torch.save(content, path)
    if draw(st.integers(0, 3)) == 0:
        changed = bytearray(path.read_bytes())
        for where, bit in draw(BYTES):
            size = min(len(changed), 600) if draw(st.booleans()) else len(changed)
            changed[int(where * size)] ^= bit
        path.write_bytes(changed[: draw(st.integers(0, len(changed)))])
    elif draw(st.integers(0, 9)) == 0:
        path.write_bytes(draw(TEXTS))
    if draw(st.integers(0, 3)) == 0:
        text = json.dumps(draw(SETTINGS)).encode() if draw(st.booleans()) else draw(TEXTS)
        (source / "config.json").write_bytes(text)
    given_path = source if draw(st.integers(0, 4)) == 0 else path
    before = state_of(source)
    with right_or_one_line():
        import_run(str(given_path), name, str(folder / "run"), stats="none", **NAMES[name])
        assert len(load_run(folder / "run").config.model.__class__.__name__) > 0
    assert state_of(source) == before
    assert {p.name for p in folder.iterdir()} <= {"source", "run"}
    shutil.rmtree(folder)
