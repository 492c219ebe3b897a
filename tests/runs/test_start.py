"""Trainings that start from a run of other classes: the table drawn anew, or one line."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.data import toys
from tests.training.test_train import tiny
from ucgm.data import Images
from ucgm.objective import preset
from ucgm.runs.settings import OptimizerConfig
from ucgm.training.loop import train


def images(folder, *names):
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes(toys.jpeg(number))
    return Images(str(folder), 8, channels=1)


def of(data, objective="flow_matching", **settings):
    config = tiny(**dict(steps=1, global_batch=2, checkpoint_every=1) | settings)
    return replace(config, data=data, objective=preset(objective), optimizer=OptimizerConfig())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    return train(of(images(folder / "a", "cat", "dog", "emu")), folder / "run")


def test_other_classes_need_a_table_of_their_own(run, tmp_path):
    fewer = images(tmp_path / "fewer", "dog", "wolf")
    with pytest.raises(
        ValueError, match=r"3 classes \(cat.*fewer has 2.*train.new_labels"
    ) as caught:
        train(of(fewer, init=str(run)), tmp_path / "x")
    assert "teacher" not in str(caught.value)
    anew = train(of(fewer, init=str(run), new_labels=True), tmp_path / "anew")
    before, after = (
        load_file(path)
        for path in (run / "checkpoints/step_0000001/ema.safetensors", anew / "teacher.safetensors")
    )
    assert before.keys() == after.keys()
    differ = [name for name in before if not torch.equal(before[name], after[name])]
    assert differ == ["y_embedder.embedding_table.weight"] and len(after[differ[0]]) == 3
    train(of(fewer, init=str(run), new_labels=True, steps=2), anew)  # goes on


def test_a_teacher_knows_the_classes_it_teaches(run, tmp_path):
    other = images(tmp_path / "other", "cat", "dog", "wolf")
    message = (
        "run was trained on other classes: class 2 is 'emu' there and 'wolf' in other.*teacher"
    )
    with pytest.raises(ValueError, match=message):
        train(of(other, "ucgm_few", init=str(run)), tmp_path / "few")
    with pytest.raises(ValueError, match="train.new_labels: the preset ucgm_few learns from"):
        train(of(other, "ucgm_few", init=str(run), new_labels=True), tmp_path / "few")
    assert not (tmp_path / "few").exists()
    # Other names of the same classes are corrected where they are kept.
    card = json.loads((run / "data.json").read_text())
    names = card["class_names"]
    (run / "data.json").write_text(json.dumps(card | {"class_names": ["cat", "dog", "wolf"]}))
    with pytest.warns(UserWarning, match="other classes"):
        train(of(other, "ucgm_few", init=str(run)), tmp_path / "few")
    (run / "data.json").write_text(json.dumps(card | {"class_names": names}))
