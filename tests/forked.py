"""Trainings in processes of their own, forked from one that has imported everything.

    python -m tests.forked < jobs.json

A job is {"config": ..., "run_dir": ..., "world": 2, "poison": [sample, ...], "left_out": [step]}:
the samples are not numbers, and the updates of the steps are left out.  "killed_at": its processes
die by SIGKILL once so many steps are done; "nodes": each is alone on a machine of its own, with the
run folder RUN_DIR/RANK.  Its processes meet as those of torchrun do, through the environment.  A
start costs a tenth of a second, not six.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAIT_FOR_ONE = 150


def run_jobs(*jobs):
    """Run jobs one after the other; a list of (exit codes, output of all processes)."""
    with tempfile.TemporaryDirectory() as folder:
        plain = [
            job | {"run_dir": str(job["run_dir"]), "log": f"{folder}/{i}"}
            for i, job in enumerate(jobs)
        ]
        command = [sys.executable, "-m", "tests.forked"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        done = subprocess.run(
            command,
            input=json.dumps(plain),
            capture_output=True,
            text=True,
            env=env,
            timeout=WAIT_FOR_ONE * len(jobs),
        )
        assert done.returncode == 0, done.stderr
        codes = json.loads(done.stdout.splitlines()[-1])
        return [(c, Path(job["log"]).read_text()) for c, job in zip(codes, plain, strict=True)]


def job(config, run_dir, world=1, **changes):
    """A job of ``run_jobs``."""
    from ucgm.runs.config import to_dict

    return {"config": to_dict(config), "run_dir": run_dir, "world": world} | changes


def _free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _train(job, rank, port):
    world = job["world"]
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    # torch replaces its pool of threads at the first use after a fork, and two threads that are the
    # first at once would end the process.
    torch.set_num_threads(1)
    if world > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        numbers |= {"LOCAL_RANK": 0} if job.get("nodes") else {}
        os.environ |= {k: str(v) for k, v in numbers.items()} | {"MASTER_ADDR": "localhost"}
    from ucgm.runs.config import Config, from_dict
    from ucgm.training.loop import train

    _poison(job.get("poison", ()))
    _leave_out(job.get("left_out", ()))
    _kill(job.get("killed_at"), rank)
    config = from_dict(Config, job["config"])
    train(config, f"{job['run_dir']}/{rank}" if job.get("nodes") else job["run_dir"])
    if config.train.compile:
        print(dict(sys.modules["torch._dynamo"].utils.counters["stats"]))


def _poison(samples):
    from ucgm.data import DigitsDataset

    original = DigitsDataset.read

    def read(self, indices):
        x, y = original(self, indices)
        x[[int(i) in samples for i in indices]] = float("nan")
        return x, y

    DigitsDataset.read = read


def _leave_out(steps):
    import torch

    from ucgm.training.nonfinite import NonFiniteSkipper

    original = NonFiniteSkipper.step

    def step(self, optimizer, averages, norm, number):
        if number in steps:
            return torch.tensor(True)
        return original(self, optimizer, averages, norm, number)

    NonFiniteSkipper.step = step


def _kill(step, rank):
    from ucgm.training import loop

    original = loop._step

    def run(state, stream):
        if state.step == step and rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        original(state, stream)

    loop._step = run


def _start(job, rank, port):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _train(job, rank, port)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main():
    """Run the jobs of standard input; prints their exit codes."""
    jobs = json.load(sys.stdin)
    import accelerate  # noqa: F401
    import torch
    import torch.distributed.fsdp  # noqa: F401

    import ucgm.training.loop  # noqa: F401

    torch.set_num_threads(1)
    codes = []
    for one in jobs:
        port = _free_port()
        children = [_start(one, rank, port) for rank in range(one["world"])]
        codes.append(_codes(children))
    print(json.dumps(codes))


def _codes(children):
    """Exit codes; when one process fails, or time is up, the others are ended as torchrun does."""
    codes, end = {}, time.monotonic() + WAIT_FOR_ONE
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) or time.monotonic() > end:
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                codes[child] = -signal.SIGKILL
        time.sleep(0.02)
    return [codes[child] for child in children]


if __name__ == "__main__":
    main()
