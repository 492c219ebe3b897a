import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"
MANIFEST = {
    entry["name"]: entry["args"] for entry in json.loads((GOLDEN / "manifest.json").read_text())
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def golden():
    def load(name):
        state = load_file(GOLDEN / f"{name}.state.safetensors")
        return state, load_file(GOLDEN / f"{name}.io.safetensors"), dict(MANIFEST[name])

    return load


@pytest.fixture
def randomize():
    def fill(network, std=0.1):
        """Random weights everywhere, zero-initialised layers included."""
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=std)
        return network

    return fill
