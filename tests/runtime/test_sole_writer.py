"""Two of every command at once, and kills at the worst moments: the lock, and what is left."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import group
from tests.data.toys import folder_bytes, image_tree
from tests.digits_oracle import perturbed_dit
from ucgm.cli.commands import main
from ucgm.data import Digits
from ucgm.evaluation.image_sets import open_images
from ucgm.nn import DiTConfig
from ucgm.runs.averages import save_snapshot
from ucgm.runs.config import Config, write_config
from ucgm.runs.saving import host_copies, save_checkpoint
from ucgm.runtime.files import claim_folder, new_folder, sole_writer, write_atomic
from ucgm.sampler import Sampler

COMMANDS = {
    "sample": "sample RUN --num-images 40 --out-dir OUT",
    "ema": "ema RUN --std 0.05 0.1",
    "tune-sampler": "tune-sampler RUN --nfe 2 --out-dir OUT",
    "benchmark": "benchmark RUN --steps 1 --num-images 40 --out-dir OUT",
    "reference": "reference IMAGES OUT.npz --extractor random --size 16 --shard-size 5",
    "encode": "encode IMAGES --vae identity --size 16 --out OUT --shard-size 5 --num-workers 0",
    "data": "data IMAGES --size 16 --out OUT",
    "evaluate": "evaluate IMAGES --reference MADE.npz --size 16 --out-dir OUT",
    "compare": "compare REPORT REPORT --out-dir OUT",
    "export": "export RUN --diffusers OUT",
    "import": "import WEIGHTS --architecture dit --out OUT",
    "train": "train --config RUN/config.yaml --run-dir OUT",
    "plot": "plot RUN --out OUT.png",
}
REPORT = Path(__file__).parents[1] / "earlier" / "files" / "benchmark"
WRITTEN = {"ema": "run/ema", "reference": "out.npz", "plot": "out.png"}
# What these write holds no time of day, and is compared byte for byte.
KILLED = ("sample", "ema", "encode", "data", "export")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh")
    config = Config(DiTConfig(size="N/2"), data=Digits(), sampler=Sampler(steps=2))
    run = folder / "run"
    run.mkdir()
    write_config(config, run / "config.yaml")
    state = host_copies(perturbed_dit().state_dict())
    facts = {"shape": [1, 8, 8], "num_classes": 10, "ema_updates": 4, "skipped": 0}
    save_checkpoint(run, 4, {"network": state, "ema": state}, facts, 1)
    for std in (0.05, 0.1):
        save_snapshot(run, 4, std, 4, state)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    image_tree(folder / "images", 2, 6)
    main(f"reference {folder}/images {folder}/made.npz --extractor random --size 16".split())
    return folder


@pytest.fixture
def place(fresh, tmp_path):
    """The same path for every run of a test, because some files hold it."""
    return shutil.copytree(fresh, tmp_path / "place")


def words_of(name, folder):
    line = COMMANDS[name].replace("REPORT", str(REPORT))
    for word, path in (("RUN", "run"), ("OUT", "out"), ("IMAGES", "images"), ("MADE", "made")):
        line = line.replace(word, str(folder / path))
    return line.split()


def code_of(words):
    try:
        main([*words])
    except SystemExit as error:
        return error.code
    return 0


def start(work, *args):
    """A process that ends with what ``work`` returns."""
    process = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(work(*args)), daemon=True
    )
    process.start()
    return process


def end(process):
    process.join(timeout=120)
    return process.exitcode


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_is_refused_in_one_line_and_writes_nothing(place, name, capsys):
    written, before = place / WRITTEN.get(name, "out"), sorted(place.rglob("*"))
    with sole_writer(written, "ucgm demo"):
        assert code_of(words_of(name, place)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    first = f"ucgm demo (process {os.getpid()} on "
    assert line.startswith(f"ucgm {name}: error: {first}"), line
    assert f"is writing {written}: wait for it, stop it, or choose another place" in line
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", KILLED)
def test_what_a_kill_leaves_is_gone_when_the_command_has_run_again(place, fresh, name, monkeypatch):
    renames, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: renames.append(paths) or replace(*paths))
    assert code_of(words_of(name, place)) == 0
    expected, number = folder_bytes(place), len(renames)
    monkeypatch.undo()

    def killed(at):
        """End at the rename number ``at``: all is written, and nothing has its name."""
        left = [at]

        def replaced(*paths):
            left[0] -= 1
            return replace(*paths) if left[0] else os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replaced
        return code_of(words_of(name, place))

    for at in sorted({1, number}):
        shutil.rmtree(place)
        shutil.copytree(fresh, place)
        assert end(start(killed, at)) == -signal.SIGKILL
        assert folder_bytes(place) != expected and list(place.rglob(".*.lock"))
        assert code_of(words_of(name, place)) == 0
        assert folder_bytes(place) == expected


def test_parts_of_a_reference_that_a_kill_took_away_are_made_again(place, monkeypatch):
    """Killed when the parts are away and the file has no name yet, then when it has its name."""
    words, replace = words_of("reference", place), os.replace

    def killed(before):
        def replaced(one, other):
            if str(other).endswith("out.npz"):
                None if before else replace(one, other)
                os.kill(os.getpid(), signal.SIGKILL)
            replace(one, other)

        os.replace = replaced
        return code_of(words)

    for before, code in ((True, 0), (False, 2)):
        assert end(start(killed, before)) == -signal.SIGKILL
        assert not (place / "out.npz.parts").exists() and list(place.glob(".out.npz.*.tmp"))
        assert code_of(words) == code  # 2: it is there, and is not overwritten
        assert [p.name for p in place.glob("*out*")] == ["out.npz"]
        assert not list(place.glob(".*"))
        (place / "out.npz").unlink()


def test_two_samplings_at_once(place, fresh):
    words = words_of("sample", place)
    assert code_of(words) == 0
    expected = folder_bytes(place)
    shutil.rmtree(place / "out")
    two = [start(code_of, words) for _ in range(2)]
    assert sorted(map(end, two)) in ([0, 2], [0, 0])
    assert folder_bytes(place) == expected


def write_half(path):
    def half(temporary):
        save_file({"x": torch.ones(3)}, temporary)
        (temporary.parent / ".tmpABC").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    write_atomic(path, half)


def test_a_writer_leaves_its_own_temporary_files_in_the_folder_that_goes(tmp_path):
    path = tmp_path / "a.safetensors"
    assert end(start(write_half, path)) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert sorted(p.name for p in left.iterdir()) == [".tmpABC", "a.safetensors"]
    write_atomic(path, lambda temporary: save_file({"x": torch.ones(3)}, temporary))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def hold(path):
    with sole_writer(path, "ucgm demo"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_lock_dies_with_its_process_and_goes_at_the_end(tmp_path):
    for path in (tmp_path / "new" / "folder", tmp_path / "a.npz"):
        assert end(start(hold, path)) == -signal.SIGKILL
        lock = path.with_name(f".{path.name}.lock")
        assert lock.exists() and not path.exists()
        with sole_writer(path, "ucgm demo"):
            assert lock.exists()
        assert not lock.exists()
        with pytest.raises(KeyError), sole_writer(path, "ucgm demo"):
            raise KeyError
        assert not lock.exists()


def test_one_place_has_one_lock_whatever_it_is_called(tmp_path, monkeypatch):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    monkeypatch.chdir(folder)
    for one in (folder, link, Path(), Path("../folder")):
        for other in (folder, link, Path(), Path("../folder")):
            with sole_writer(one, "ucgm demo"), pytest.raises(ValueError, match="ucgm demo"):
                sole_writer(other, "ucgm sample").__enter__()
    assert list(folder.iterdir()) == []


def test_the_lock_is_inside_where_nothing_can_be_made_beside(tmp_path, monkeypatch):
    folder = tmp_path / "volume"
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with sole_writer(folder, "ucgm demo"):
        assert [p.name for p in folder.iterdir()] == [".lock"]
        claim_folder(folder, {"seed": 0})
        claim_folder(folder, {"seed": 1}, overwrite=True)
        with pytest.raises(ValueError, match="ucgm demo"):
            sole_writer(folder, "ucgm sample").__enter__()
    assert [p.name for p in folder.iterdir()] == ["protocol.json"]


def test_a_lock_that_its_owner_deletes_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    path, flock, calls = tmp_path / "a", fcntl.flock, []

    def deleted_before(file, how):
        calls.append(how)
        if len(calls) < 3:
            (tmp_path / ".a.lock").unlink()
        if len(calls) == 2:
            (tmp_path / ".a.lock").touch()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", deleted_before)
    with sole_writer(path, "ucgm demo"), pytest.raises(ValueError, match="ucgm demo"):
        assert len(calls) == 3
        sole_writer(path, "ucgm sample").__enter__()


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    with sole_writer(tmp_path / "a", "ucgm demo"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file/a/b cannot be written: .*Choose another place"):
        sole_writer(tmp_path / "file" / "a" / "b", "ucgm demo").__enter__()


def member(world, folder):
    with world.writes(folder, "ucgm demo"):
        world.wait()
        with pytest.raises(ValueError, match="ucgm demo"):
            sole_writer(folder, "ucgm sample").__enter__()
        world.wait()


def test_a_group_of_processes_has_one_lock(tmp_path):
    group.finish(group.start(2, member, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "half").touch()
    with pytest.raises(KeyError), new_folder(out, "ucgm demo") as folder:
        (folder / "a").touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with new_folder(out, "ucgm demo") as folder:
        (folder / "a").touch()
        assert list(out.iterdir()) == []
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["out", "out/a"]
    with pytest.raises(ValueError, match="holds something"):
        new_folder(out, "ucgm demo").__enter__()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_takes_away_what_a_kill_left_of_it_and_of_nothing_else(tmp_path):
    for name in (".a[1].77.tmp", ".a[1].b.77.tmp", ".a1.77.tmp", ".a[1].x.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".a[1].78.tmp").mkdir()
    (tmp_path / ".a[1].78.tmp" / ".tmpABC").touch()  # as safetensors calls its own
    write_atomic(tmp_path / "a[1]", "text")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"a[1]", ".a[1].b.77.tmp", ".a1.77.tmp", ".a[1].x.tmp"}


def test_a_claimed_folder_has_nothing_half_written(tmp_path):
    for path in (".protocol.json.7.tmp", "chunks/.chunk_00001.safetensors.7.tmp", "chunks/a"):
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).touch()
    with pytest.raises(ValueError, match="holds other files"):
        claim_folder(tmp_path / "out", {"seed": 0})
    assert len(folder_bytes(tmp_path)) == 3
    (tmp_path / "out" / "protocol.json").write_text('{"seed": 0}')
    claim_folder(tmp_path / "out", {"seed": 0})
    assert folder_bytes(tmp_path / "out").keys() == {"protocol.json", "chunks/a"}


def test_images_that_are_still_sampled_are_no_set(place):
    assert code_of(words_of("sample", place)) == 0
    out = place / "out"
    assert len(open_images(str(out))) == len(open_images(str(out / "images"))) == 40
    (out / "images" / "labels.csv").unlink()
    for folder in (out, out / "images"):
        with pytest.raises(ValueError, match="images is not finished: run its `ucgm sample`"):
            open_images(str(folder))


def test_parts_of_another_format_do_not_stay(place):
    words = words_of("sample", place)
    (place / "out" / ".parts").mkdir(parents=True)
    (place / "out" / ".parts" / "arr_0_00000000.npy").touch()
    assert code_of(words) == 0
    assert sorted(p.name for p in (place / "out").iterdir()) == [
        "grid.png",
        "images",
        "protocol.json",
    ]
