"""Independent jobs that each make a part of a benchmark, and the command that sums them up."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from tests import group
from tests.digits_oracle import make_run
from ucgm.cli import commands as cli
from ucgm.evaluation.benchmark import benchmark
from ucgm.evaluation.chunks import ChunkFolder
from ucgm.evaluation.scoring import MetricConfig
from ucgm.runtime.files import TOGETHER, sole_writer

pytestmark = pytest.mark.filterwarnings("ignore:.*samples for 32 features")
# 6 chunks for each of two numbers of steps and two repeats, the last of 3 images
STEPS, COUNT, CHUNK, REPEATS = (1, 2), 103, 20, 2


def work(out, part=None, **changed):
    options = dict(chunk_size=CHUNK, repeats=REPEATS, device="cpu", part=part) | changed
    metrics = MetricConfig(metrics=("fid", "accuracy"))
    return benchmark(
        make_run(out.parent), STEPS, COUNT, metrics_config=metrics, out_dir=out, **options
    )


def scores(out):
    """The bytes of the scores and image hashes of a report."""
    rows = json.loads((out / "benchmark.json").read_text())["rows"]
    return json.dumps([(row["images_hash"], row["nfe"], row["scores"]) for row in rows])


def times(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("chunks/*/chunk_*")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    work(out)
    return scores(out)


@pytest.mark.parametrize("order", ["123", "312", "231"])
def test_parts_in_any_order_and_the_sum_equal_one_run(tmp_path, alone, order, capsys):
    out, left = tmp_path / "out", set("123")
    for number in order:
        assert work(out, f"{number}/3") == {"folder": str(out)}
        left.remove(number)
        missing = " ".join(f"{n}/3" for n in sorted(left))
        said = f"missing: {missing}" if left else "all are there: now the same without --part"
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"part {number}/3 is done; {said}"
        found = {int(path.stem[6:]) % 3 + 1 for path in times(out)}
        assert found == {1, 2, 3} - set(map(int, left))
        assert not (out / "benchmark.json").exists()
    before = times(out)
    assert len(before) == len(STEPS) * REPEATS * 6
    work(out)
    assert scores(out) == alone and times(out) == before
    assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".tmp", ".lock")]


def test_a_part_made_twice_does_nothing_new(tmp_path, monkeypatch):
    out = tmp_path / "out"
    work(out, "2/3")
    before = times(out)
    monkeypatch.setattr("ucgm.evaluation.chunks.ChunkFolder.write", None)
    work(out, "2/3")
    assert times(out) == before and len(before) == len(STEPS) * REPEATS * 2


def test_a_part_that_was_killed_is_made_by_the_last_command(tmp_path, alone):
    out = tmp_path / "out"
    for number in (1, 2, 3):
        work(out, f"{number}/3")
    shutil.rmtree(out / "chunks" / "steps_002_repeat_1")
    left = out / "chunks" / "steps_001_repeat_0" / ".chunk_00001.safetensors.7.tmp"
    left.mkdir()
    work(out)
    assert scores(out) == alone and not left.exists()


def job(world, out, parts):
    world.wait()  # all begin in the same instant, and meet no more
    work(out, parts[world.rank])


@pytest.mark.parametrize("parts", [["1/3", "2/3", "3/3"], ["1/2", "1/2", "2/2"]])
def test_parts_at_the_same_time_do_not_disturb_each_other(tmp_path, alone, parts):
    out = tmp_path / "out"
    group.finish(group.start(len(parts), job, out, parts))
    before = times(out)
    work(out)
    assert scores(out) == alone and times(out) == before
    assert not [path for path in tmp_path.rglob(".*") if path.suffix in (".tmp", ".lock")]


def test_two_jobs_write_the_same_chunk_in_turn(tmp_path, monkeypatch):
    log, rows, folder = [], {"features": torch.ones(3, 2)}, ChunkFolder(tmp_path / "out")

    def slow(*args):
        log.append("begin")
        time.sleep(0.2)
        save_file(*args)
        log.append("end")

    monkeypatch.setattr("ucgm.evaluation.chunks.save_file", slow)
    with ThreadPoolExecutor(2) as jobs:
        for done in [jobs.submit(folder.write, 0, (rows, {"n": 3})) for _ in range(2)]:
            done.result()
    assert log == ["begin", "end"] * 2
    assert folder.read(0)[1] == {"n": 3} and len(list(folder.folder.iterdir())) == 1


def test_what_another_part_is_writing_stays_and_the_sum_waits(tmp_path):
    out = tmp_path / "out"
    work(out, "1/3")
    with sole_writer(out, "ucgm benchmark", TOGETHER):
        busy = out / "chunks" / "steps_001_repeat_0" / ".chunk_00001.safetensors.7.tmp"
        busy.mkdir()
        work(out, "3/3")
        assert busy.exists()
        with pytest.raises(ValueError, match="ucgm benchmark .* is writing .*wait for it"):
            work(out)
    with (
        sole_writer(out, "ucgm benchmark"),
        pytest.raises(ValueError, match="ucgm benchmark .* is writing"),
    ):
        work(out, "2/3")


def test_a_part_of_several_processes(tmp_path, alone):
    out = tmp_path / "out"
    work(out, "2/2")
    group.finish(group.start(2, member, out))
    assert len(times(out)) == len(STEPS) * REPEATS * 6
    work(out)
    assert scores(out) == alone


def member(world, out):
    import ucgm.evaluation.benchmark as module

    module.join_world = lambda device: world
    work(out, "1/2")


def test_parts_of_other_settings_are_refused(tmp_path):
    out = tmp_path / "out"
    work(out, "1/3")
    with pytest.raises(ValueError, match="was made with chunk_size 20, this is 25"):
        work(out, "2/3", chunk_size=25)


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "1/0", "-1/3", "1/3/5", "a/b", "1.5/3", ""])
def test_what_is_no_part(tmp_path, part):
    with pytest.raises(ValueError, match="is no part: the third of eight is --part 3/8"):
        work(tmp_path / "out", part)
    assert not (tmp_path / "out").exists()


def test_parts_without_work_and_features_that_would_not_stay(tmp_path):
    with pytest.raises(ValueError, match="there are 6 chunks: ask for fewer parts"):
        work(tmp_path / "out", "1/7")
    with pytest.raises(ValueError, match="--keep-features false would delete"):
        work(tmp_path / "out", "1/3", keep_features=False)
    assert not (tmp_path / "out").exists()


def test_the_command_has_the_option(monkeypatch, capsys):
    given = {}
    module, name = cli._FUNCTIONS["benchmark"]

    def note(run: str, num_images: int = 2000, part: str | None = None):
        given.update(part=part)

    monkeypatch.setattr(f"{module}.{name}", note)
    cli.main(["benchmark", "runs/x", "--part", "2/8"])
    assert given == {"part": "2/8"}
    cli.main(["benchmark", "--help"])
    assert "--part K/N" in capsys.readouterr().out
