"""Shared fixtures: one thread, float64 helpers, the golden files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from ucgm import transport as paths

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, help="new random cases of each fuzzer; 100 fixed ones")


def pytest_configure(config):
    count = config.getoption("--fuzz")
    settings.register_profile(
        "fuzz",
        max_examples=count or 100,
        derandomize=count is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("fuzz")


GOLDEN = Path(__file__).parent / "golden"


def golden(name):
    """(rows of settings, arrays as tensors) of a golden file."""
    rows = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return rows, {key: torch.from_numpy(arrays[key]) for key in arrays.files}


# Names of the published code -> our classes, for those that exist.
PUBLISHED = {
    "Linear": "Linear",
    "ReLinear": "Linear",
    "TrigFlow": "Trig",
    "TrigLinear": "TrigLinear",
    "EDM": "EDM",
    "Random": "Random",
}


def published_transport(name):
    return getattr(paths, PUBLISHED[name])()


def golden_network(scale=1.0):
    """The network of the golden files: F(x, t, y), elementwise."""

    def network(x, t, y):
        time, label = (v.to(x).reshape(-1, 1, 1, 1) for v in (t, y))
        return scale * (torch.tanh(x * (0.7 + 0.1 * label) + torch.sin(3 * time)) - 0.3 * time * x)

    return network


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
