import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"
MANIFEST = {
    entry["name"]: entry["args"] for entry in json.loads((GOLDEN / "manifest.json").read_text())
}
EDM2_ARGS = dict(
    input_size=8,
    model_channels=64,
    channel_mult=(1, 2),
    num_blocks=1,
    attention=(4,),
    num_classes=5,
)


def architecture(name):
    """The `--architecture` of a stored network."""
    return name if name.startswith("rae") else name.split("_")[0]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def formula_state(shapes):
    """Weights by formula, so that only the outputs of the published EDM2 are stored."""
    state = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        j = torch.arange(shape.numel(), dtype=torch.float64)
        state[name] = torch.sin(0.7 * j * j + 1.3 * j + index + 1).float().reshape(shape)
    return state


@pytest.fixture
def golden():
    """golden(name) -> (published weights, published inputs and output, constructor arguments)."""

    def load(name):
        io = load_file(GOLDEN / f"{name}.io.safetensors")
        if name == "edm2":
            from ucgm.nn import EDM2

            state = EDM2(**EDM2_ARGS).state_dict()
            return formula_state({k: v.shape for k, v in state.items()}), io, dict(EDM2_ARGS)
        return load_file(GOLDEN / f"{name}.state.safetensors"), io, dict(MANIFEST[name])

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
