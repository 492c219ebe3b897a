"""Students of other runs: kept blocks, teachers of any size and path, exit heads, a resumed run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.runs.test_start import images, of
from tests.training.test_train import same, tiny, weights
from ucgm.generation.command import open_run, samples_of_run
from ucgm.generation.samples import SamplingConfig
from ucgm.nn import DiTConfig
from ucgm.objective import FieldSource, preset
from ucgm.runs.layers import config_of, training_config
from ucgm.runtime.files import sha256
from ucgm.training.loop import train
from ucgm.transport import Trig

TAUGHT = preset(
    "multi_step",
    field="sources",
    sources=(FieldSource(weight=0.9), FieldSource(network="data", weight=0.1)),
)
DEEP = DiTConfig(size="N/4", depth=4)


def config(objective=TAUGHT, model=DEEP, **settings):
    return replace(tiny(**dict(steps=2) | settings), objective=objective, model=model)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of four blocks with an exit head; do not write into it."""
    objective = preset("multi_step", exit_head=0.5)
    model = replace(DEEP, exit_layer=2)
    return train(config(objective, model), tmp_path_factory.mktemp("teacher") / "run")


def test_a_student_of_kept_blocks(teacher, tmp_path):
    """Its weights are those of the blocks that are kept; the whole network teaches it."""
    layers = [
        {"objective": {"preset": "multi_step"}},
        {
            "train": {"init": str(teacher), "keep_blocks": [3, 1], "steps": 2, "global_batch": 16},
            "model": {"exit_layer": None},
            "objective": {"field": "sources", "sources": [{"weight": 1.0}]},
        },
    ]
    settings, _ = training_config(layers, tmp_path / "run")
    assert settings.model.depth == 2 and settings.optimizer.name != "adamw"
    run = train(settings, tmp_path / "run")
    start, whole = load_file(run / "teacher.safetensors"), weights(teacher, 2, "ema")
    for name, value in start.items():
        here = name.replace("blocks.0.", "blocks.3.").replace("blocks.1.", "blocks.1.")
        assert torch.equal(value, whole[here])
    dropped = {n for n in whole if n.startswith(("blocks.0.", "blocks.2.", "exit_head."))}
    assert len(start) == len(whole) - len(dropped)
    facts = json.loads((run / "teachers.json").read_text())["teachers"]
    assert [f["run"] for f in facts] == [str(teacher)] and facts[0]["step"] == 2


def test_a_run_goes_on_with_the_teacher_it_began_with(teacher, tmp_path):
    other = shutil.copytree(teacher, tmp_path / "other")
    settings = dict(teacher=(str(other),), steps=4, checkpoint_every=2)
    whole = train(config(model=DiTConfig(size="N/4"), **settings), tmp_path / "whole")
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoints/step_0000004")
    moved = other.rename(tmp_path / "moved")  # it may move
    again = config(model=DiTConfig(size="N/4"), **settings | {"teacher": (str(moved),)})
    train(again, run)
    assert same(weights(run, 4), weights(whole, 4))
    shutil.rmtree(run / "checkpoints/step_0000004")
    file = moved / "checkpoints/step_0000002/ema.safetensors"
    save_file({k: v + 1 for k, v in load_file(file).items()}, file)
    facts = json.loads((file.parent / "manifest.json").read_text())
    facts["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    (file.parent / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="are not those that .*run began with"):
        train(again, run)


def test_two_teachers_of_other_size_and_path(teacher, tmp_path):
    trig = preset("flow_matching", transport=Trig())
    second = train(config(trig, DiTConfig(size="N/2")), tmp_path / "second")
    both = replace(
        TAUGHT,
        sources=(FieldSource(teacher=0, weight=0.5), FieldSource(teacher=1, weight=0.5)),
    )
    student = config(both, DiTConfig(size="N/4"), teacher=(str(teacher), str(second)))
    run = train(student, tmp_path / "run")
    assert len(json.loads((run / "teachers.json").read_text())["teachers"]) == 2
    with pytest.raises(ValueError, match="names 2 teachers and train.teacher has 1"):
        train(config(both, teacher=(str(teacher),)), tmp_path / "one")
    assert not (tmp_path / "one").exists()
    with pytest.raises(ValueError, match="flow_matching learns from no teacher"):
        train(config(preset("flow_matching"), teacher=(str(teacher),)), tmp_path / "one")


def test_internal_guidance_of_a_run_and_as_a_teacher(teacher, tmp_path):
    run = open_run(
        str(teacher), None, "ema", "cpu", ["--guidance.kind", "internal", "--guidance.scale", "2"]
    )
    samples = samples_of_run(run, SamplingConfig(), 3)
    samples.latents(torch.arange(4))
    assert samples.counter.rows == 4 * 3
    guided = replace(
        TAUGHT, sources=(FieldSource(weight=2.0), FieldSource(view="exit", weight=-1.0))
    )
    start = dict(init=str(teacher), teacher=(str(teacher),))
    train(config(guided, **start), tmp_path / "few")
    plain = train(config(preset("multi_step")), tmp_path / "plain")
    with pytest.raises(ValueError, match="asks for the exit head of .*plain, which has none"):
        train(config(guided, teacher=(str(plain),)), tmp_path / "x")
    with pytest.raises(ValueError, match="never train the network's exit head"):
        train(config(TAUGHT, replace(DEEP, exit_layer=2), **start), tmp_path / "y")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(keep_blocks=(0, 4)), "must be different blocks of 0 to 3"),
        (dict(keep_blocks=(1, 1)), "must be different blocks of 0 to 3"),
        (dict(keep_blocks=(0, 1, 2)), "names 3 blocks and model.depth is 2"),
        (dict(keep_blocks=(0, 1), init=None), "name a run there"),
        (dict(init=None), "learns from a trained model: set train.init"),
    ],
)
def test_bad_students_are_refused_before_a_folder_is_made(teacher, tmp_path, settings, message):
    bad = config(model=replace(DEEP, depth=2), **dict(init=str(teacher)) | settings)
    with pytest.raises(ValueError, match=message):
        train(bad, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_or_size_is_refused(teacher, tmp_path):
    data = images(tmp_path / "data", "cat", "dog")
    bad = replace(of(data, teacher=(str(teacher),)), objective=TAUGHT)
    with pytest.raises(ValueError, match="trained on other classes"):
        train(bad, tmp_path / "run")
    names = [str(k) for k in range(10)]
    larger = replace(images(tmp_path / "ten", *names), size=16)
    with pytest.raises(ValueError, match=r"data of shape \(1, 8, 8\), and ten has \(1, 16, 16\)"):
        train(replace(bad, data=larger), tmp_path / "run")


def test_files_of_distillation_build_and_are_explained():
    root = Path(__file__).parents[2]
    for path in sorted((root / "configs/distil").glob("*.yaml")):
        found = config_of(["--config", str(path), "--model.size", "N/4"])
        assert found.objective.needs_teacher == (path.name != "exit.yaml")
        assert (found.model.exit_layer is not None) == (path.name == "exit.yaml")
        found.model.build((1, 8, 8), 10)
        assert f"configs/distil/{path.name}" in (root / "docs/distil.md").read_text()
