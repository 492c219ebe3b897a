"""Files: read without running code."""

import argparse
import pickle

import pytest
import torch
from safetensors.torch import save_file

from ucgm.nn import from_state_dict, read_checkpoint
from ucgm.nn.pretrained.files import unwrap


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".pkl"])
def test_a_file_that_would_run_code_is_refused(suffix, tmp_path):
    mark, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    content = {"ema": {"w": torch.ones(1)}, "args": Evil(mark)}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="would run code.*unsafe_pickle=True"):
        read_checkpoint(path)
    assert not mark.exists(), "refused before anything ran"
    read_checkpoint(path, unsafe_pickle=True)
    assert mark.exists(), "the file was indeed harmful"


def test_an_unsafe_module_gives_its_state(tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps({"ema": torch.nn.Linear(2, 3)}))
    with pytest.raises(ValueError, match="would run code"):
        read_checkpoint(path)
    state, _ = unwrap(read_checkpoint(path, unsafe_pickle=True))
    assert state["weight"].shape == (3, 2)


def test_arguments_of_a_training_script_are_data(tmp_path):
    torch.save(
        {"ema": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "c.pt"
    )
    content = read_checkpoint(tmp_path / "c.pt")
    assert content["args"].lr == 1e-4
    assert unwrap(content)[1] == ["args"]


def test_safetensors_and_shards(golden, tmp_path):
    state, io, args = golden("sit")
    names = sorted(state)
    save_file({k: state[k] for k in names[:9]}, tmp_path / "model-1-of-2.safetensors")
    save_file({k: state[k] for k in names[9:]}, tmp_path / "model-2-of-2.safetensors")
    net = from_state_dict("sit", read_checkpoint(tmp_path), **args)
    with torch.no_grad():
        out = net.native(io["x"], io["t"], io["y"])
    torch.testing.assert_close(out, io["out"], rtol=1e-5, atol=1e-5)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="no .safetensors or .bin"):
        read_checkpoint(tmp_path)
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(ValueError, match="was not loaded"):
        read_checkpoint(tmp_path / "text.pt")
