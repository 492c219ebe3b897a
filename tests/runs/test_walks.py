"""JiT, RAE and iMF from the public file to diffusers: import, the published samples, few steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ucgm
from tests.data.toys import image_tree, tiny_kl, tiny_rae
from tests.nn.conftest import GOLDEN
from tests.nn.test_jit import published_heun
from tests.nn.test_modern import CASES, weights
from tests.runs.test_import import by_pipeline, drawn
from ucgm.cli import commands as cli
from ucgm.data.pixels import to_uint8
from ucgm.nn import Network
from ucgm.runtime.randomness import RowRandom

COUNT = 2
IMF = {
    "mean": torch.tensor([0.86488, -0.27787343, 0.21616915, 0.3738409]),
    "std": torch.tensor([4.85503674, 5.31922414, 3.93725398, 3.9870003]),
}
"""Of latents, as published."""


def of_jit(folder):
    """Averages of two lengths beside the weights, every name under net."""
    state = load_file(GOLDEN / "jit.state.safetensors")
    nets = {"model": 1.0, "model_ema1": 0.0, "model_ema2": 2.0}
    file = {k: {f"net.{n}": v + more for n, v in state.items()} for k, more in nets.items()}
    torch.save({"epoch": 599, **file}, folder / "weights.pth")


def of_rae(folder):
    """DiT-DH of 64 channels, those of the tiny autoencoder."""
    state = load_file(GOLDEN / "rae_ddt.state.safetensors")
    for name, value in state.items():
        if value.ndim == 4:
            state[name] = value.repeat(1, 8, 1, 1) / 8
        elif name.startswith("final_layer.linear"):
            state[name] = value.repeat(8, *[1] * (value.ndim - 1))
    torch.save({"ema": state, "model": {k: v + 1 for k, v in state.items()}}, folder / "weights.pt")
    tiny_rae().save_pretrained(folder / "vae")


def of_imf(folder):
    """The torch layout, of tensors alone."""
    torch.save(IMF, folder / "stats.pt")
    torch.save(weights(CASES["imf"]["shapes"]), folder / "weights.pth")
    tiny_kl().save_pretrained(folder / "vae")


def euler_of_rae(network, z, y):
    """RAE's 50 times, from 1 to 0.001 and then shifted; from the last of them on to 0."""
    times, shift = torch.linspace(1, 0.001, 50).tolist(), 48**0.5
    times = [shift * t / (1 + (shift - 1) * t) for t in times]
    for t, to in zip(times, [*times[1:], 0.0], strict=True):
        z = z + (to - t) * network.native(z, torch.full((len(z),), t), y)
    return z


def step_of_imf(network, z, y):
    """One step of h = 1, told omega and its interval; latents as the autoencoder takes them."""
    one = torch.ones(len(z))
    x = z - network.native(z, one, y, one, 7 * one, 0.2 * one, 0.7 * one)["out"]
    mean, std = (IMF[key].view(-1, 1, 1) for key in ("mean", "std"))
    return x * std + mean


def test_a_saved_pipeline_finds_every_network():
    """It names them (ucgm, class)."""
    waiting, found = [Network], set()
    for cls in waiting:
        waiting += [c for c in cls.__subclasses__() if c.__module__.startswith("ucgm.nn.")]
        found |= {cls} if hasattr(cls.__init__, "__wrapped__") else set()  # it is no base class
    assert {"DiT", "DiTDH", "EDM2", "MiT", "RAEv2"} <= {cls.__name__ for cls in found}
    assert all(getattr(ucgm, cls.__name__) is cls for cls in found)


@dataclass
class Walk:
    """A family from its file to few steps."""

    write: Any
    words: list[str]
    """of its import."""
    published: Any
    """its sampler by hand."""
    decoded: Any
    normalise: str | None
    """of its latents; None: pixels."""
    few: list[str]
    """words of its tuning."""


TWO_STEPS = ["--guidance.scale", "4", "--guidance.interval", "[0.36, 0.64]"]
WALKS = {
    "jit": Walk(
        of_jit,
        [],
        lambda net, z, y: published_heun(net, z, y, 2.4, 50),
        lambda vae, x: x,
        None,
        ["--objective.preset", "few_step"],
    ),
    "rae_ddt": Walk(
        of_rae,
        ["--stats", "none"],
        euler_of_rae,
        lambda vae, x: vae.decode(x).sample * 2 - 1,
        "none",
        ["--objective.preset", "few_step"],
    ),
    "imf": Walk(
        of_imf,
        ["--input-size", "8"],
        step_of_imf,
        lambda vae, x: vae.decode(x).sample,
        "stats.pt",
        ["--objective.preset", "imf", *TWO_STEPS],
    ),
}


def command(*words):
    cli.main([str(word) for word in words])


@torch.no_grad()
@pytest.mark.parametrize("name", WALKS)
def test_the_whole_walk(name, tmp_path, capsys):
    walk, run_dir, tuned_dir = WALKS[name], tmp_path / "run", tmp_path / "tuned"
    tree = image_tree(tmp_path / "tree", 5, 4)
    walk.write(tmp_path)
    (file,) = tmp_path.glob("weights.*")
    vae = ["--vae", tmp_path / "vae"] if walk.normalise else []
    command("import", file, "--architecture", name, "--out", run_dir, *vae, *walk.words)
    run = ucgm.load_run(run_dir)
    assert run.config.data.pixels == (walk.normalise is None)

    sampled = ["--num-images", COUNT, "--tile", COUNT]
    command("sample", run_dir, *sampled)
    (folder,) = (run_dir / "samples").iterdir()
    z = RowRandom.for_samples(0, torch.arange(COUNT)).normal(*run.shape)
    x = walk.published(run.network, z, torch.arange(COUNT))
    module = None if walk.normalise is None else run.config.data.codec.autoencoder().module
    wanted = to_uint8(walk.decoded(module, x)).permute(0, 2, 3, 1).numpy()
    far = np.abs(drawn(folder).astype(int) - wanted)
    assert far.max() <= 1 and wanted.std() > 1

    data = ["--data", "Images", "--data.path", tree, "--data.size", 16]
    if walk.normalise is not None:
        rule = tmp_path / walk.normalise if "." in walk.normalise else walk.normalise
        where = ["--out", tmp_path / "latents", "--num-workers", 0, "--device", "cpu"]
        command("encode", tree, *vae, "--size", 16, "--normalise", rule, *where)
        data = ["--data", "Latents", "--data.path", tmp_path / "latents"]
    short = ["--train.steps", 20, "--train.global-batch", 4, "--optimizer.lr", 1e-4]
    short += ["--optimizer.warmup-steps", 0, "--train.init", run_dir]
    with torch.enable_grad():
        command("train", *walk.few, *data, *short, "--run-dir", tuned_dir)
    tuned = ucgm.load_run(tuned_dir)
    assert tuned.step == 20 and tuned.config.sampler.solver == "jump"
    before = run.network.state_dict()
    moved = {
        key: (value - before[key]).abs().max()
        for key, value in tuned.network.state_dict().items()
        if key in before
    }
    assert len(moved) == len(before) and 0 < max(moved.values()) < 0.1

    command("sample", tuned_dir, *sampled, "--steps", 2)
    (folder,) = (tuned_dir / "samples").glob("*ema_steps_02*")
    command("export", tuned_dir, "--diffusers", tmp_path / "out")
    pipe = ucgm.UCGMPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe.model) is type(run.network)
    assert np.array_equal(by_pipeline(pipe, tuned, COUNT, 2, tile=COUNT), drawn(folder))
