"""Run folders that may not be read, that a kill left behind, or that somebody forged."""

import json
import multiprocessing
import os
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_train import tiny
from ucgm.cli import commands as cli
from ucgm.nn import EDM2Config, read_checkpoint
from ucgm.runs.checkpoint import load_run
from ucgm.runs.config import read_config, write_config
from ucgm.runs.imported import import_run
from ucgm.runs.saving import checkpoints_of
from ucgm.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    old = os.umask(0o022)
    try:
        config = tiny(steps=2, global_batch=4, checkpoint_every=1)
        return train(config, tmp_path_factory.mktemp("run") / "run")
    finally:
        os.umask(old)


def test_weights_and_manifest_have_the_mode_of_the_umask(run):
    files = [p for p in run.rglob("*") if p.is_file()]
    assert {p.name for p in files} >= {"manifest.json", "ema.safetensors", "config.yaml"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o644}


def open_as_nobody(run, queue):
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        load_run(run)
        queue.put("read")
    except Exception as error:
        queue.put(f"{type(error).__name__} {error}")


@pytest.mark.parametrize(
    "name",
    ["", "checkpoints", "checkpoints/step_0000002", "config.yaml"]
    + [f"checkpoints/step_0000002/{name}" for name in ("manifest.json", "ema.safetensors")],
)
def test_what_may_not_be_read_is_neither_damaged_nor_missing(run, name):
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        copy = shutil.copytree(run, Path(place) / "run")
        os.chmod(copy / name, 0)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=open_as_nobody, args=(copy, queue))
        process.start()
        said = queue.get()
        process.join()
        os.chmod(copy / name, 0o755)
    assert said.startswith("PermissionError no permission to read"), said
    assert str(copy / name) in said and "delete" not in said


def test_a_preview_that_a_kill_left_goes_with_the_next_training(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "samples" / ".step_0000001.png.123.tmp").write_bytes(b"half")
    train(read_config(copy / "config.yaml"), copy)
    assert not list(copy.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": 5}, "shape must be a list, got 5"),
        ({"shape": [1, 10**9, 8]}, r"shape\[1\] must be at most"),
        ({"num_classes": True}, "num_classes must be a whole number"),
        ({"num_classes": 10**12}, "num_classes must be at most"),
        ({"step": "x"}, "are damaged"),
        ({"files": {"../../config.yaml": {}}}, "are damaged"),
        ({"files": {"/dev/zero": {"bytes": 0, "sha256": ""}}}, "are damaged"),
        ({"files": [1]}, "are damaged"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*falling back")
def test_a_forged_manifest(run, tmp_path, changes, message):
    copy = shutil.copytree(run, tmp_path / "run")
    for folder in checkpoints_of(copy):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    with pytest.raises(ValueError, match=message):
        load_run(copy)


def test_a_network_of_other_sizes_is_refused_before_it_is_built(run, tmp_path):
    copy, config = shutil.copytree(run, tmp_path / "run"), read_config(run / "config.yaml")
    large = replace(config, model=replace(config.model, hidden_size=65536, depth=500))
    write_config(large, copy / "config.yaml")
    with pytest.raises(ValueError, match="does not fit the network"):
        load_run(copy)
    text = (run / "config.yaml").read_text().replace("depth: null", "depth: 1000000000", 1)
    (copy / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="depth must be at most 1000"):
        load_run(copy)
    with pytest.raises(ValueError, match="GiB of weights, .* are free"):
        large.model.build((1, 8, 8), 10)
    with pytest.raises(ValueError, match="no network of these settings"):
        EDM2Config(model_channels=65536, channel_mult=(65536,) * 9).build((3, 256, 256), 0)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for name in ("step_9999999", "step_10000000", "step_x", "step_", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [p.name for p in checkpoints_of(tmp_path)] == ["step_9999999", "step_10000000"]


def test_weights_that_are_none(tmp_path):
    state = {"ema": {}}
    state["ema"]["ema"] = state
    weights = load_file(Path(__file__).parents[1] / "nn/golden/dit.state.safetensors")
    for number, (content, message) in enumerate(
        [
            (state, "contains itself"),
            ([torch.ones(1)], "holds a list"),
            (torch.ones(1), "holds a Tensor"),
            ({1: torch.ones(1)}, "state dictionary is empty"),
            (weights | {"x_embedder.proj.weight": torch.ones(())}, "has shape"),
        ]
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(ValueError, match=message):
            import_run(str(tmp_path / f"{number}.pt"), "dit", str(tmp_path / "run"))
    torch.save(weights, tmp_path / "good.pt")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json holds a list"):
        import_run(str(tmp_path), "dit", str(tmp_path / "run"))
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ValueError, match="does not exist|no regular file"):
        read_checkpoint(tmp_path / "pipe.pt")
    assert not (tmp_path / "run").exists()


def test_more_than_the_machine_holds_is_one_line(monkeypatch, capsys):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(cli, "_call", full)
    with pytest.raises(SystemExit) as end:
        cli.main(["models"])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
