"""The launchers: their commands parse, on one machine and on several; SLURM jobs queue again."""

import functools
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ucgm.cli import commands as cli

REPO = Path(__file__).parents[1]
LAUNCH = REPO / "scripts" / "launch"
ROWS = {
    "multi_imagenet256_vavae": [],
    "few_imagenet256_vavae": ["runs/multi"],
    "tune_imagenet256_repae": ["weights/repae.pt"],
    "sample_imagenet256_repae": ["weights/repae.pt", "reference.npz"],
}


def shell(*words, expect=0, **environment):
    """Output of a script."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "NODE", "GPUS"))}
    done = subprocess.run(
        ["bash", *map(str, words)],
        capture_output=True,
        text=True,
        env=own | {"PYTHON": sys.executable} | environment,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def called(monkeypatch):
    """Run printed commands up to the function that would do the work; returns what it was given."""
    record = []
    for module, name in [
        ("ucgm.training.loop", "train"),
        *(cli._FUNCTIONS[c] for c in ("import", "benchmark")),
    ]:
        function = getattr(importlib.import_module(module), name)

        def note(*args, _name=name, **kwargs):
            record.append((_name, args, kwargs))

        monkeypatch.setattr(importlib.import_module(module), name, functools.wraps(function)(note))

    def replay(output):
        for line in output.splitlines():
            words = shlex.split(line)
            cli.main(words[words.index("ucgm") + 1 :])
        return record

    return replay


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda p: p.stem)
def test_syntax(path):
    shell("-n", path)
    assert os.access(path, os.X_OK) == (path.name != "start.sh")


def test_every_launcher_is_tested():
    assert {p.stem for p in LAUNCH.glob("*.sh")} - {"start", "slurm"} == ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_commands_parse(name, called):
    output = shell(LAUNCH / f"{name}.sh", *ROWS[name], DRY_RUN="1", GPUS="8")
    last = output.splitlines()[-1]
    assert "accelerate.commands.launch --num_machines 1 --num_processes 8" in last
    assert "--mixed_precision bf16" in last and "--multi_gpu" in last
    record = called(output)
    names = [entry[0] for entry in record]
    if name.startswith("sample"):
        assert names == ["import_run", "benchmark"]
        assert record[1][2]["steps"] == [40] and record[1][2]["num_images"] == 50_000
        assert record[1][2]["run"] == record[0][2]["out"]
        return
    assert names == (["import_run"] if "repae" in name else []) + ["train"]
    config, run_dir = record[-1][1]
    assert config.train.global_batch == 1024 and run_dir.startswith("runs/imagenet256_")
    teacher = {"m": None, "f": "runs/multi", "t": "runs/imagenet256_repae"}[name[0]]
    assert config.train.init == teacher and config.objective.needs_teacher == (teacher is not None)


def test_flags_follow_and_names_with_spaces_survive(called):
    flags = ["--train.accumulation", "2", "--model.init_args.gradient_checkpointing", "true"]
    output = shell(
        LAUNCH / "multi_imagenet256_vavae.sh", "runs/my run", *flags, DRY_RUN="1", GPUS="1"
    )
    assert "--multi_gpu" not in output
    config, run_dir = called(output)[0][1]
    assert run_dir == "runs/my run" and config.train.accumulation == 2
    assert config.model.gradient_checkpointing and config.model.size == "XL/1"


def test_several_machines():
    launcher = LAUNCH / "tune_imagenet256_repae.sh"
    several = dict(DRY_RUN="1", GPUS="4", NODES="2", MASTER_ADDR="host0")
    first = shell(launcher, "x.pt", NODE_RANK="0", **several)
    second = shell(launcher, "x.pt", NODE_RANK="1", **several)
    assert "import x.pt" in first and "import" not in second
    words = "--num_machines 2 --num_processes 8", "--machine_rank 1", "--main_process_ip host0"
    assert all(word in second for word in words)
    assert "NODE_RANK: is missing" in shell(launcher, "x.pt", DRY_RUN="1", NODES="2", expect=1)


def test_what_is_missing_is_said():
    for name, arguments in ROWS.items():
        if arguments:
            assert f"scripts/launch/{name}.sh " in shell(LAUNCH / f"{name}.sh", expect=2)


@pytest.fixture
def cluster(tmp_path):
    """Stand-ins of srun, scancel and scontrol that write down how they were called."""
    programs = {
        "srun": 'echo $$ > srun.pid; echo "srun $*" >> log; trap "echo saved >> log; exit 0" TERM; '
        '[ -n "${TASK_CODE:-}" ] && exit $TASK_CODE; for i in $(seq 200); do sleep 0.1; done',
        "scancel": 'echo "scancel $*" >> log; kill -TERM $(cat srun.pid)',
        "scontrol": '[ "$1" = show ] && echo host0 || echo "scontrol $*" >> log',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "log").touch()
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "77",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_PER_NODE": "h100:4",
        "SLURM_CPUS_PER_TASK": "12",
        "SLURM_JOB_NODELIST": "host[0-1]",
    }

    def start(**more):
        return subprocess.Popen(
            ["bash", LAUNCH / "slurm.sh", "train.sh", "runs/x"], env=environment | more
        )

    return start, tmp_path / "log"


def test_a_job_at_its_time_limit_saves_and_queues_again(cluster):
    start, log = cluster
    job = start()
    deadline = time.monotonic() + 20
    while "srun" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 0
    assert log.read_text().splitlines() == [
        "srun --kill-on-bad-exit=1 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=12 "
        "bash train.sh runs/x",
        "scancel --signal=TERM 77",
        "saved",
        "scontrol requeue 77",
    ]


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_that_ends_by_itself_does_not(cluster, code):
    start, log = cluster
    assert start(TASK_CODE=str(code)).wait(20) == code
    assert "requeue" not in log.read_text()


def test_a_task_of_srun_is_one_process(called):
    slurm = dict(UCGM_SRUN="1", SLURM_PROCID="3", SLURM_LOCALID="3", SLURM_NTASKS="8")
    output = shell(LAUNCH / "tune_imagenet256_repae.sh", "x.pt", DRY_RUN="1", **slurm)
    assert "accelerate" not in output and "import" not in output
    assert called(output)[0][0] == "train"
