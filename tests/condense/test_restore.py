"""A set made again from its manifest: the same folder, or one line that says what differs."""

import json
import shutil

import pytest
import torch

from ucgm.cli.commands import main
from ucgm.condense import CondenseConfig
from ucgm.condense.command import condense, generated_pool
from ucgm.condense.condensed import CondensedSet
from ucgm.condense.evaluate import evaluate_set
from ucgm.condense.restore import restore
from ucgm.data import Digits
from ucgm.generation.command import open_run
from ucgm.nn import DiTConfig
from ucgm.objective import preset
from ucgm.runs.config import Config
from ucgm.runs.settings import TrainConfig
from ucgm.sampler import Sampler
from ucgm.training.loop import train

FEW = CondenseConfig(ipc=2, pool_per_class=6, accept=False, label_views=3, selector="random")


def trained(folder, seed=0):
    config = Config(
        model=DiTConfig(size="T/4"),
        objective=preset("ucgm_multi"),
        data=Digits(),
        train=TrainConfig(steps=2, global_batch=8, preview_every=2, checkpoint_every=2, seed=seed),
        sampler=Sampler(steps=2),
    )
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """A set of samples and of real images in turn."""
    out = tmp_path_factory.mktemp("sets") / "made"
    return condense(str(run), str(out), settings=FEW, mixed=True, observer_steps=60)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def changed(made, folder, **changes):
    """A manifest with other values, alone in a folder."""
    folder.mkdir()
    said = json.loads((made / "condensed.json").read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (said[section] if section else said)[name] = value
    (folder / "condensed.json").write_text(json.dumps(said))
    return str(folder / "condensed.json")


def test_the_same_folder_byte_for_byte(made, tmp_path, capsys):
    names = json.loads((made / "condensed.json").read_text())["candidates"]
    assert {name.split(":")[0] for (name,) in names} == {"sample", "digits-train"}
    main(["condense", "restore", str(made / "condensed.json"), str(tmp_path / "again")])
    assert contents(tmp_path / "again") == contents(made)
    assert capsys.readouterr().out == f"20 images with stored labels: {tmp_path}/again/images\n"


def test_a_manifest_alone_gives_hard_labels_and_another_place_of_the_run(
    made, run, tmp_path, capsys
):
    moved = shutil.copytree(run, tmp_path / "moved")
    recipe = changed(made, tmp_path / "alone", source="/nowhere", data__where="/nowhere")
    with pytest.raises(ValueError, match="/nowhere"):
        restore(recipe, str(tmp_path / "again"))
    again = restore(recipe, str(tmp_path / "again"), run=str(moved))
    said = json.loads((again / "condensed.json").read_text())
    assert (said["source"], said["data"]["where"]) == (str(moved), str(moved))
    assert said["settings"]["labels"] == "hard"
    pictures = {k: v for k, v in contents(again).items() if k.endswith(".png")}
    assert pictures == {k: v for k, v in contents(made).items() if k.endswith(".png")}
    out = capsys.readouterr().out
    assert "20 images with hard labels" in out
    assert f"observer.safetensors and labels.safetensors not found beside {recipe}" in out
    with pytest.raises(ValueError, match=r"has no observer\.safetensors: copy the one"):
        evaluate_set(str(again))
    shutil.copy(made / "observer.safetensors", again)
    assert CondensedSet.load(again).soft is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings__crops": 5}, "is of a set with crops 5: only whole images"),
        ({"settings__factor": 2}, "is of a set with factor 2: only whole images"),
        ({"settings__match": "mean"}, "is of a set with match mean: only whole images"),
        ({"pixels_sha256": "0" * 64}, "come out with other pixels"),
        ({"pixels_sha256": 5}, "pixels_sha256 must be a text"),
        (
            {"shape": [1, 9, 9]},
            r"candidates (sample|digits-train) are of 1x8x8 and the set is of 1x9x9",
        ),
        ({"candidates": [["sample:0"]] * 19}, "has 19 candidates for"),
        ({"candidates": [], "images_per_class": [0] * 10}, "has 0 candidates for"),
        ({"candidates": [["sample:x"]] * 20}, r"names \['sample:x'\], which is no candidate"),
        ({"candidates": [["digits-train:1343"]] * 20}, r"names \['digits-train:1343'\]"),
        ({"candidates": [["faces:0"]] * 20}, r"names \['faces:0'\], which is no candidate"),
        ({"candidates": [["sample:" + "9" * 40]] * 20}, "which is no candidate"),
        ({"candidates": [["sample:0", "sample:1"]] * 20}, "which is no candidate"),
        ({"classes": ["../../x", *"123456789"]}, "class '../../x' of .* cannot be the name of a"),
        ({"classes": ["1", *"123456789"]}, "class '1' of .* cannot be the name of a folder of"),
        ({"pool": {"chained": [{"generated": {"seed": 0}}]}}, "training_step is missing"),
    ],
)
def test_what_is_no_recipe_is_said_in_a_line(made, tmp_path, capsys, change, said):
    recipe = changed(made, tmp_path / "other", **change)
    with pytest.raises(ValueError, match=said):
        restore(recipe, str(tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]
    with pytest.raises(SystemExit):
        main(["condense", "restore", recipe, str(tmp_path / "out")])
    assert capsys.readouterr().err.count("\n") == 1


def test_another_run_and_another_observer_are_told_apart(made, tmp_path):
    other = trained(tmp_path / "run", seed=1)
    with pytest.raises(ValueError, match="a run with weights_sha256 .*: name the run with --run"):
        restore(str(made / "condensed.json"), str(tmp_path / "out"), run=str(other))
    copy = shutil.copytree(made, tmp_path / "copy")
    content = bytearray((copy / "observer.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "observer.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="has other weights than"):
        restore(str(copy / "condensed.json"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_sample_is_the_same_whatever_is_asked_for_with_it(run):
    pool = generated_pool(open_run(str(run), None, "ema", "cpu"), 0, 2)
    whole, names = pool.candidates(3, 0, 70)
    assert torch.equal(pool.candidates(3, 33, 37)[0], whole[33:])
    assert names[69] == "sample:693"
    assert torch.equal(pool.numbered(torch.tensor([693, 3])), whole[[69, 0]])
