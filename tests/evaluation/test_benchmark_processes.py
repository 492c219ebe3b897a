"""A DiT in float32 on 1, 2, 3 processes, with kills and batches of 7, 32, 50: the same images."""

import json
import os
import random
import subprocess
import sys
import time

import pytest

from tests import group
from tests.evaluation.benchmark_worker import CHUNK, COUNT, STEPS, work

TOTAL = len(STEPS) * -(-COUNT // CHUNK)


def member(world, out, seconds, batch):
    work(out, seconds, world, batch)


def start(out, size, seconds=0.0, batch=50):
    return group.start(size, member, out, seconds, batch)


def chunks(out):
    return list(out.glob("chunks/*/chunk_*.safetensors"))


def kill_after(processes, out, more, pause):
    """SIGKILL all once ``more`` further chunks are there, and a random moment later."""
    target, limit = len(chunks(out)) + more, time.monotonic() + 120
    while len(chunks(out)) < target:
        assert time.monotonic() < limit and all(p.is_alive() for p in processes)
        time.sleep(0.005)
    time.sleep(pause)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def rows(out):
    return json.loads((out / "benchmark.json").read_text())["rows"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    work(out)
    return rows(out)


def check(found, expected):
    assert [row["num_samples"] for row in found] == [COUNT] * len(STEPS)
    for one, other in zip(found, expected, strict=True):
        assert one["images_hash"] == other["images_hash"]
        assert one["nfe"] == other["nfe"]
        assert one["scores"]["fid"] == pytest.approx(other["scores"]["fid"], rel=1e-9)
        assert one["scores"]["accuracy"] == other["scores"]["accuracy"]


@pytest.mark.parametrize("size, batch", [(2, 7), (3, 32)])
def test_several_processes_equal_one(tmp_path, alone, size, batch):
    group.finish(start(tmp_path / "out", size, batch=batch))
    check(rows(tmp_path / "out"), alone)
    for one, other in zip(rows(tmp_path / "out"), alone, strict=True):
        assert one["scores"] == other["scores"]


@pytest.mark.parametrize("batch, chunk", [(7, 1024), (32, 100), (1, 999)])
def test_neither_batch_nor_chunk_is_part_of_a_result(tmp_path, alone, batch, chunk):
    work(tmp_path / "out", batch=batch, chunk=chunk)
    check(rows(tmp_path / "out"), alone)


def launch(out, size, threads):
    """Processes as torchrun starts them, with ``threads`` each."""
    port, processes = group.free_port(), []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        place |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": threads}
        env = {**os.environ, **{key: str(value) for key, value in place.items()}}
        env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"}
        command = [
            sys.executable,
            "-m",
            "tests.evaluation.benchmark_worker",
            str(out),
            "0",
            "7",
            "70",
        ]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL))
    assert [process.wait(timeout=120) for process in processes] == [0] * size


@pytest.mark.slow
def test_started_as_torchrun_starts_them(tmp_path, alone):
    launch(tmp_path / "out", 2, threads=1)
    check(rows(tmp_path / "out"), alone)


@pytest.mark.slow
def test_two_threads_move_the_last_bits_of_convolutions_alone(tmp_path, alone):
    """The images of a transformer are the same; the extractor's convolutions sum otherwise."""
    launch(tmp_path / "out", 1, threads=2)
    for one, other in zip(rows(tmp_path / "out"), alone, strict=True):
        assert one["images_hash"] == other["images_hash"]
        assert one["scores"]["fid"] == pytest.approx(other["scores"]["fid"], rel=1e-6)


def test_three_kills_and_as_many_other_worlds(tmp_path, alone):
    out, moments = tmp_path / "out", random.Random(0)
    counts = []
    for size, batch in ((2, 7), (3, 50), (1, 32)):
        processes = start(out, size, seconds=0.05, batch=batch)
        kill_after(processes, out, moments.randint(1, 7), moments.uniform(0.0, 0.1))
        counts.append(len(chunks(out)))
        assert not (out / "benchmark.json").exists()
    assert 0 < counts[0] < counts[1] < counts[2] < TOTAL
    kept = {path: path.stat().st_mtime_ns for path in chunks(out)}
    group.finish(start(out, 2, batch=7))
    check(rows(out), alone)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert not list(out.rglob("*.tmp"))
