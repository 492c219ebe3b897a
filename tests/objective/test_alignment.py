"""Representation alignment against published numbers of REPA and iREPA (random weights, MIT)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ucgm.objective import Alignment
from ucgm.objective.alignment import spatially_normalised

PUBLISHED = load_file(Path(__file__).parent / "alignment.safetensors")


def maps(tokens):
    """(B, N, D) to (B, D, g, g)."""
    return tokens.transpose(1, 2).unflatten(2, (4, 4))


@pytest.fixture(params=["repa_sit", "irepa_sit"])
def case(request):
    """The projector with published weights, and what is published beside them."""
    name = request.param
    found = {k.partition(".")[2]: v for k, v in PUBLISHED.items() if k.startswith(f"{name}.")}
    kind = "conv" if name == "irepa_sit" else "mlp"
    alignment = Alignment(48, 10, grid=4, projector=kind, hidden=24)
    prefix, state = "projectors.0.projection_layer.", {}
    for key, value in found.items():
        if key.startswith(prefix):
            place = key.removeprefix(prefix) if kind == "mlp" else f"0.{key.removeprefix(prefix)}"
            square = value.ndim == 2
            state[f"projector.{place}"] = value[..., None, None] if square else value
    alignment.load_state_dict(state)
    return alignment, found


def test_published_projection(case):
    alignment, found = case
    torch.testing.assert_close(
        alignment.project(found["out_hidden"]), maps(found["out_proj"]), rtol=0, atol=1e-5
    )
    context = torch.cat((torch.randn(3, 2, 48), found["out_hidden"]), 1)
    assert torch.equal(alignment.project(context), alignment.project(found["out_hidden"]))


def test_published_normalisation(case):
    target = maps(case[1]["target"])
    for gamma, name in ((1.0, "out_target_norm"), (0.6, "out_target_norm_alpha0.6")):
        wanted = maps(case[1][name])
        found = spatially_normalised(target, gamma)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_published_losses(case):
    alignment, found = case
    alignment.target, alignment._tokens = maps(found["target"]), found["out_hidden"]
    torch.testing.assert_close(alignment(), found["out_loss_plain"][0], rtol=0, atol=1e-6)
    alignment.gamma = 1.0
    torch.testing.assert_close(alignment(), found["out_loss"][0], rtol=0, atol=1e-6)
    assert abs(found["out_loss"] - found["out_loss_plain"]) > 1e-3


def test_features_of_another_grid_are_resized():
    alignment = Alignment(8, 3, grid=2, hidden=4)
    alignment._tokens = torch.randn(2, 4, 8)
    coarse = torch.randn(2, 3, 2, 2)
    alignment.target = coarse
    one = alignment()
    alignment.target = torch.nn.functional.interpolate(coarse, scale_factor=2)
    assert 0 < (alignment() - one).abs() < 0.5
    alignment.target = torch.ones(2, 3, 8, 8)
    constant = alignment()
    alignment.target = torch.ones(2, 3, 2, 2)
    torch.testing.assert_close(alignment(), constant)
