"""Trackers: what they are given, how a run is continued, what is refused."""

import importlib.util
import json
import shutil
import struct
import time
from dataclasses import replace

import pytest

from tests.training.test_train import tiny
from ucgm.training.loop import train

STEPS = [1, 2, 3, 4, 5, 6]


def tracked(name):
    return tiny(tracker=name, preview_every=2)


def continue_from_three(config, run):
    """Train again from the checkpoint of step 3."""
    shutil.rmtree(run / "checkpoints" / "step_0000006")
    train(config, run)


def chunks(content, block=32768):
    """Records of a file in the log format of LevelDB, behind seven bytes of header."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def offline_records(file):
    """Steps with numbers, steps with a picture, and settings of a file of wandb."""
    from wandb.proto import wandb_internal_pb2 as proto

    # A process of wandb writes the file, and may still be at it.
    for _ in range(100):
        records = [proto.Record.FromString(data) for data in chunks(file.read_bytes())]
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    losses, pictures, settings = {}, [], {}
    for record in records:
        if record.run.run_id:
            settings |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
        settings |= {u.key: json.loads(u.value_json) for u in record.config.update}
        items = record.history.item
        values = {i.key or "/".join(i.nested_key): i.value_json for i in items}
        if "loss" in values:
            losses[int(values["_step"])] = json.loads(values["loss"])
        if any(key.startswith("preview") for key in values):
            pictures.append(int(values["_step"]))
    return losses, pictures, settings


@pytest.mark.slow
def test_wandb_offline_is_one_run_that_is_continued(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(tracked("wandb"), tmp_path / "run")
    number = (run / "wandb_id").read_text().strip()
    first = list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [f.name for f in first] == [f"run-{number}.wandb"]
    losses, pictures, settings = offline_records(first[0])
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses == {line["step"]: line["loss"] for line in lines}
    assert sorted(losses) == STEPS and pictures == [2, 4, 6]
    assert settings["optimizer.lr"] == 1e-3 and settings["objective.preset"] == "ucgm_multi"
    continue_from_three(tracked("wandb"), run)
    second = [f for f in (run / "wandb").glob("offline-run-*/*.wandb") if f not in first]
    assert [f.name for f in second] == [f"run-{number}.wandb"]
    assert sorted(offline_records(second[0])[0]) == [4, 5, 6]


@pytest.mark.slow
def test_tensorboard_has_numbers_pictures_and_one_curve(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(tracked("tensorboard"), tmp_path / "run")
    continue_from_three(tracked("tensorboard"), run)
    events = accumulator.EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    for key in ("loss", "grad_norm"):
        found = events.Scalars(key)
        assert [e.step for e in found] == STEPS
        assert [e.value for e in found] == pytest.approx([line[key] for line in lines])
    assert [e.step for e in events.Images("preview")] == [2, 4, 6]
    assert {f"loss_by_time/{b / 10:.1f}" for b in range(10)} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_library_is_an_error_before_anything_is_made(tmp_path, monkeypatch, name):
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == name else original(n, *a)
    )
    with pytest.raises(ValueError, match=f"{name}, which is not installed: pip install {name}"):
        train(tracked(name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path):
    config = replace(tiny(), train=replace(tiny().train, tracker="mlflow"))
    with pytest.raises(ValueError, match="wandb or tensorboard or null, got 'mlflow'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
