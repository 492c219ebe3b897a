"""A run folder at a URL: a training goes on from it on an empty machine; a cut upload is none."""

import json
import shutil
import uuid
import warnings
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

import ucgm
from tests.forked import job, run_jobs
from tests.training.test_train import same, tiny
from ucgm.cli import main
from ucgm.runs import checkpoint
from ucgm.runs.mirror import Mirror
from ucgm.runs.settings import EMAConfig
from ucgm.training.loop import train


class Store(MemoryFileSystem):
    """Object storage of one process; ``broken(path)`` says whether a file cannot be written."""

    protocol = "store"
    store, pseudo_dirs = {}, [""]
    broken = staticmethod(lambda path: False)

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("store://", "memory://"))

    def put_file(self, local, path, **more):
        if Store.broken(path):
            raise ConnectionError("the bucket\nis gone")
        super().put_file(local, path, **more)


fsspec.register_implementation("store", Store, clobber=True)


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(Store, "broken", staticmethod(lambda path: False))
    return f"store://{uuid.uuid4().hex}/run"


def mirrored(url, **settings):
    return tiny(**(dict(steps=6, checkpoint_every=2, mirror=str(url)) | settings))


def files_of(url):
    fs, root = fsspec.url_to_fs(url)
    return {name.removeprefix(root + "/"): fs.cat_file(name) for name in fs.find(root)}


def lines(run):
    """The log without what a clock says."""
    timed = ("images_per_second", "tflops", "of_peak", "data_wait", "memory_gib")
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


def assert_same_run(one, other, step):
    names = [p.name for p in sorted(one.glob(f"checkpoints/step_{step:07d}/*.safetensors"))]
    assert {"network.safetensors", "ema.safetensors", "optimizer.safetensors"} <= {*names}
    for name in names:
        place = f"checkpoints/step_{step:07d}/{name}"
        assert same(load_file(one / place), load_file(other / place)), name
    assert lines(one) == lines(other)
    snapshots = [{p.name: p.read_bytes() for p in run.glob("ema/*")} for run in (one, other)]
    assert snapshots[0] == snapshots[1] and snapshots[0]


def test_a_training_goes_on_in_an_empty_folder_on_another_machine(tmp_path):
    """Of 1 process, of 2, and of 2 on two machines that share nothing but the URL."""
    config = replace(
        tiny(steps=12, checkpoint_every=2), ema=EMAConfig(tracked=(0.1,), snapshot_every=4)
    )
    jobs, kinds = [], {"one": (1, {}), "two": (2, {}), "nodes": (2, {"nodes": True})}
    for name, (world, more) in kinds.items():
        train_ = replace(config.train, mirror=f"file://{tmp_path}/bucket/{name}")
        copied, places = replace(config, train=train_), [tmp_path / name / p for p in "abc"]
        jobs += [
            job(config, places[0], world),
            job(copied, places[1], world, killed_at=9, **more),
            job(copied, places[2], world, **more),
        ]
    done = iter(run_jobs(*jobs))
    for name, straight, killed, again in zip(kinds, done, done, done, strict=True):
        assert straight[0] == [0] * kinds[name][0], straight[1]
        assert killed[0][0] == -9, killed[1]
        assert not any(again[0]), again[1]
        # Step 8 is on its way when the process dies, step 6 is there: it was waited for.
        assert any(f"step {n} of 12" in again[1] for n in (6, 8)), again[1]
        last = tmp_path / name / ("c/0" if name == "nodes" else "c")
        assert_same_run(tmp_path / name / "a", last, 12)
        there = [p.name for p in sorted((tmp_path / "bucket" / name / "checkpoints").iterdir())]
        assert there == ["step_0000010", "step_0000012"]
    # The second machine has what it began with; no log, no checkpoint of its own.
    other = sorted(p.name for p in (tmp_path / "nodes/c/1/checkpoints").iterdir())
    assert len(other) == 1 and other[0] in ("step_0000006", "step_0000008")


def test_what_is_there_and_what_goes(url, tmp_path):
    config = mirrored(url, keep_checkpoints=1, milestone_every=4, steps=10, preview_every=4)
    run = train(config, tmp_path / "run")
    there = files_of(url)
    steps = {name.split("/")[1] for name in there if name.startswith("checkpoints/")}
    assert steps == {"step_0000004", "step_0000008", "step_0000010"}
    kept = {name for name in there if not name.startswith("checkpoints/")}
    assert kept == {"config.yaml", "data.json", "metrics.jsonl"} | {
        f"samples/step_{step:07d}.png" for step in (4, 8, 10)
    }
    for name, content in there.items():
        assert (run / name).read_bytes() == content, name
    # An empty machine fetches the newest alone, and the milestones stay where they are.
    longer = replace(config, train=replace(config.train, milestone_every=None))
    resumed = train(longer, tmp_path / "elsewhere")
    assert [p.name for p in checkpoint.checkpoints_of(resumed)] == ["step_0000010"]
    assert lines(resumed) == lines(run)


def test_a_cut_upload_and_a_changed_one_are_not_taken(url, tmp_path):
    straight = train(mirrored(url), tmp_path / "run")
    fs, root = fsspec.url_to_fs(url)
    last = f"{root}/checkpoints/step_0000006"
    manifest = fs.cat_file(f"{last}/manifest.json")
    fs.rm_file(f"{last}/manifest.json")
    assert checkpoint.load_run(url).step == 4
    again = train(mirrored(url), tmp_path / "cut")
    assert_same(straight, again)
    assert fs.cat_file(f"{last}/manifest.json") == manifest  # sent again
    fs.pipe_file(f"{last}/ema.safetensors", b"half of it")
    with pytest.warns(UserWarning, match="ema.safetensors is truncated or changed; taking"):
        assert_same(straight, train(mirrored(url), tmp_path / "changed"))
    assert len(fs.cat_file(f"{last}/ema.safetensors")) > 99  # and again
    fs.pipe_file(f"{last}/ema.safetensors", b"half of it")
    fs.pipe_file(f"{root}/checkpoints/step_0000004/ema.safetensors", b"")
    with (
        pytest.warns(UserWarning, match="taking the one before"),
        pytest.raises(ValueError, match="store.*all 2 checkpoints are damaged"),
    ):
        train(mirrored(url), tmp_path / "lost")


def assert_same(one, other):
    place = "checkpoints/step_0000006/optimizer.safetensors"
    assert same(load_file(one / place), load_file(other / place)) and lines(one) == lines(other)


def test_the_newer_of_both_wins(url, tmp_path):
    """A bucket that was out of reach at the end gets what it lacks; an old folder what is newer."""
    run = train(mirrored(url), tmp_path / "run")
    fs, root = fsspec.url_to_fs(url)
    old = shutil.copytree(run, tmp_path / "old")
    shutil.rmtree(old / "checkpoints/step_0000006")
    train(mirrored(url), old)
    assert_same(run, old)
    fs.rm(f"{root}/checkpoints/step_0000006", recursive=True)
    train(mirrored(url), run)
    assert fs.exists(f"{root}/checkpoints/step_0000006/manifest.json")
    (run / "checkpoints/step_0000006/ema.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        train(mirrored(url), run)
    assert checkpoint.load_run(run).step == 6


def test_a_bucket_that_fails_midway_costs_no_step(url, tmp_path, monkeypatch):
    run = tmp_path / "run"
    tried = []
    monkeypatch.setattr(
        Store,
        "broken",
        staticmethod(lambda path: "step_0000004/" in path and not tried and not tried.append(path)),
    )
    with pytest.warns(UserWarning, match=r"the bucket is gone.*step_0000004 is whole in .*run"):
        train(mirrored(url), run)
    there = {name.split("/")[1] for name in files_of(url) if name.startswith("checkpoints/")}
    assert there == {"step_0000004", "step_0000006"}  # the next checkpoint sent both
    assert checkpoint.load_run(url).step == 6
    other = f"{url}_2"
    monkeypatch.setattr(Store, "broken", staticmethod(lambda path: "checkpoints" in path))
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="whole in .*Run the same"):
        train(mirrored(other), tmp_path / "two")
    assert checkpoint.load_run(tmp_path / "two").step == 6
    with pytest.raises(ValueError, match="no checkpoint yet"):
        checkpoint.load_run(other)
    monkeypatch.setattr(Store, "broken", staticmethod(lambda path: False))
    train(mirrored(other), tmp_path / "two")
    assert checkpoint.load_run(other).step == 6


@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere://x/run", "nowhere://x/run cannot be opened .*Protocol not known"),
        ("store://x/broken", "store://x/broken cannot be written .*the bucket is gone"),
        ("file:///proc/nothing/run", "file:///proc/nothing/run cannot be written"),
        ("store://x/another", "store://x/another belongs to another configuration .*seed"),
        ("store://x/no_run", "store://x/no_run holds files and no run"),
    ],
)
def test_a_mirror_that_cannot_be(name, message, tmp_path, monkeypatch, capsys):
    """One line, before the first step."""
    monkeypatch.setattr(Store, "broken", staticmethod(lambda path: "broken" in path))
    fs = fsspec.filesystem("store")
    if name.endswith("another"):
        Mirror(name, train(tiny(steps=1, seed=5), tmp_path / "one"), tiny()).push()
    fs.pipe_file("/x/no_run/metrics.jsonl", b"")
    with pytest.raises(ValueError, match=message) as error:
        train(mirrored(name), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert "step 1/6" not in capsys.readouterr().out.replace("step 1/1", "")


def test_the_command_goes_on_with_what_was_fitted_elsewhere(tmp_path, capsys):
    words = ["--data", "Digits", "--objective.preset", "ucgm_multi", "--train.log_every", "1"]
    words += ["--model.size", "N/4", "--model.class_path", "DiTConfig", "--train.steps", "2"]
    words += ["--train.mirror", f"file://{tmp_path}/bucket"]
    main(["train", *words, "--optimizer.lr", "3e-3", "--run-dir", str(tmp_path / "one")])
    few = ["--train.mirror", f"file://{tmp_path}/bucket", "--train.log_every", "2"]
    main(["train", *few, "--run-dir", str(tmp_path / "two")])
    assert "step 2 of 2" in capsys.readouterr().out
    configs = [checkpoint.load_run(tmp_path / name).config for name in ("one", "two")]
    assert configs[0].optimizer == configs[1].optimizer and configs[1].optimizer.lr == 3e-3
    assert configs[0].model == configs[1].model


def test_a_run_at_a_url_is_read_and_cached(url, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = train(mirrored(url), tmp_path / "run")
    assert ucgm.load_run(url).digest == checkpoint.load_run(run).digest
    assert ucgm.load_run(url, step=4).step == 4
    read, original = [], Store.get_file
    monkeypatch.setattr(
        Store, "get_file", lambda s, p, *a, **k: (read.append(p), original(s, p, *a, **k))
    )
    out = tmp_path / "out"
    main(["sample", url, "--num-images", "2", "--out-dir", str(out), "--device", "cpu"])
    assert (out / "grid.png").is_file() and not [p for p in read if "checkpoints" in p]
    start = replace(mirrored(url, mirror=None, init=url, steps=1), objective=ucgm_few())
    train(start, tmp_path / "few")
    # Another run at the same place, with fewer steps: what was cached is not taken for it.
    fs, root = fsspec.url_to_fs(url)
    fs.rm(root, recursive=True)
    other = train(mirrored(url, steps=2, seed=9), tmp_path / "other")
    assert ucgm.load_run(url).digest == checkpoint.load_run(other).digest
    with pytest.raises(ValueError, match="no checkpoint of step 4"):
        ucgm.load_run(url, step=4)
    fs.rm(root, recursive=True)
    with pytest.raises(ValueError, match="there is no run: it has no config.yaml"):
        ucgm.load_run(url)


def ucgm_few():
    from ucgm.objective import preset

    return preset("ucgm_few")


def test_names_from_a_stranger_stay_in_the_folder(url, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train(mirrored(url, steps=2), tmp_path / "run")
    fs, root = fsspec.url_to_fs(url)
    found = fs.find(root, detail=True)
    names = ("../../evil.json", "samples/../../evil.png", "/evil.json", ".evil.json", "evil.py",
             "checkpoints/step_0000002/../../../evil.json", "ema/a/evil.safetensors")  # fmt: skip
    forged = {f"{root}/{name}": {"type": "file", "size": 1} for name in names}
    asked, original = [], Store.get_file
    monkeypatch.setattr(Store, "find", lambda *_, **__: found | forged)
    monkeypatch.setattr(
        Store, "get_file", lambda s, p, *a, **k: (asked.append(p), original(s, p, *a, **k))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ucgm.load_run(url).step == 2
    assert asked and not [name for name in asked if "evil" in name]
    assert not [p for p in Path(tmp_path).rglob("*evil*")]
