"""The launchers: their commands parse, on one machine and on several; SLURM jobs queue again.

The files of SkyPilot and Kubeflow have the fields that their schemas ask for, and what they run is
run here, in the environment of a machine of theirs, down to the command that would start.
"""

import functools
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

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


@pytest.fixture
def machine(tmp_path):
    """Run a script as a machine of a cluster does, with a python that writes down what it is asked
    to do, in a copy of what the launchers read; returns the folder and the written command lines.
    """
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/bash\nprintf "%q " "$@" >> {tmp_path}/log\necho >> {tmp_path}/log\n')
    python.chmod(0o755)
    tree = tmp_path / "volume" / "ucgm"
    for part in ("scripts/launch", "configs"):
        shutil.copytree(REPO / part, tree / part)
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "bin" / "activate").touch()
    (tmp_path / "home").mkdir()

    def run(words, environment, expect=0):
        path = f"{python.parent}:/usr/bin:/bin"
        own = {"PATH": path, "HOME": str(tmp_path / "home")}
        (tmp_path / "log").write_text("")
        done = subprocess.run(
            words, cwd=tree, env=own | environment, capture_output=True, text=True
        )
        assert done.returncode == expect, done.stderr
        return (tmp_path / "log").read_text() if expect == 0 else done.stderr

    return run


def the_command_of(output, rank, address, called):
    """Configuration and folder of the last command, whose nodes, rank and address are checked."""
    last = output.splitlines()[-1]
    found = dict(re.findall(r"--(num_\w+|machine_rank|main_\w+|mixed_precision) (\S+)", last))
    assert found.pop("main_process_port").isdigit()
    assert found == {
        "num_machines": "2",
        "num_processes": "16",
        "machine_rank": rank,
        "main_process_ip": address,
        "mixed_precision": "bf16",
    }
    (name, (config, run_dir), _), *more = called(last)
    assert name == "train" and not more and config.train.global_batch == 1024
    return config, run_dir


def skypilot(**changed):
    """The task, and the environment of its machines: its own variables and those of SkyPilot."""
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    cluster = dict(SKYPILOT_NUM_NODES="2", SKYPILOT_NUM_GPUS_PER_NODE="8")
    cluster["SKYPILOT_NODE_IPS"] = "10.0.0.5\n10.0.0.6"
    return task, {k: v or "s3://bucket" for k, v in task["envs"].items()} | cluster | changed


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_machine_of_skypilot_starts_its_part(machine, called, rank):
    task, environment = skypilot(SKYPILOT_NODE_RANK=rank)
    output = machine(["bash", "-c", task["run"]], environment)
    config, run_dir = the_command_of(output, rank, "10.0.0.5", called)
    assert run_dir == "/runs/imagenet256_vavae" and config.data.path == "/data"


def test_another_launcher_with_its_arguments_under_skypilot(machine, called):
    head = (LAUNCH / "skypilot.yaml").read_text().partition("\nname:")[0]
    said = [word for word in shlex.split(head) if word.startswith(("LAUNCHER=", "ARGUMENTS="))]
    changed = dict(word.split("=", 1) for word in said)
    assert changed.keys() == {"LAUNCHER", "ARGUMENTS"}
    task, environment = skypilot(SKYPILOT_NODE_RANK="1", **changed)
    output = machine(["bash", "-c", task["run"]], environment)
    config, run_dir = the_command_of(output, "1", "10.0.0.5", called)
    assert run_dir == "/runs/imagenet256_vavae_few" == config.train.init + "_few"


def test_the_file_of_skypilot_has_the_fields_of_a_task():
    task, _ = skypilot()
    known = "name workdir num_nodes resources envs file_mounts setup run".split()
    assert list(task) == known and task["workdir"] == "."
    assert task["resources"]["accelerators"] == "H100:8" and task["num_nodes"] == 2
    for place, bucket in task["file_mounts"].items():
        assert bucket["mode"] in ("MOUNT", "COPY", "MOUNT_CACHED")
        asked = bucket["source"].strip("${}")
        assert asked in task["envs"] and task["envs"][asked] is None  # SkyPilot asks for it
        assert place in task["envs"]["ARGUMENTS"]
    assert "scripts/install.sh" in task["setup"]


def trainjob():
    """The claim, the job, and the variables that the job sets itself."""
    claim, job = yaml.safe_load_all((LAUNCH / "trainjob.yaml").read_text())
    return claim, job, {entry["name"]: entry["value"] for entry in job["spec"]["trainer"]["env"]}


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_node_of_a_trainjob_starts_its_part(machine, called, tmp_path, rank):
    _, job, environment = trainjob()
    trainer, address = job["spec"]["trainer"], "ucgm-node-0-0.ucgm"
    environment |= {
        "VOLUME": str(tmp_path / "volume"),
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
        "PET_NODE_RANK": rank,
        "PET_MASTER_ADDR": address,
        "PET_MASTER_PORT": "29400",
    }
    output = machine(trainer["command"], environment)
    assert output.splitlines()[0].startswith("-m pip install")
    config, run_dir = the_command_of(output, rank, address, called)
    assert "--main_process_port 29400" in output
    assert run_dir == f"{environment['VOLUME']}/runs/imagenet256_vavae"
    assert config.data.path == f"{environment['VOLUME']}/data"
    assert (tmp_path / "home" / "ucgm" / "scripts" / "launch").is_dir()


def test_a_trainjob_without_its_runtime_says_what_is_missing(machine, tmp_path):
    _, job, environment = trainjob()
    environment |= {"VOLUME": str(tmp_path / "volume")}
    assert "PET_NNODES" in machine(job["spec"]["trainer"]["command"], environment, expect=1)


def test_the_file_of_kubeflow_has_the_fields_of_a_trainjob():
    claim, job, environment = trainjob()
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["resources"]["requests"]["storage"]
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert spec.keys() == {"runtimeRef", "trainer", "runtimePatches"}
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    trainer = spec["trainer"]
    assert trainer["numNodes"] == 2
    for kind in ("requests", "limits"):
        assert trainer["resourcesPerNode"][kind]["nvidia.com/gpu"] == trainer["numProcPerNode"]
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert patch["manager"] and node["name"] == pod["containers"][0]["name"] == "node"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts.keys() == {environment["VOLUME"], "/dev/shm"}
    held = volumes[mounts[environment["VOLUME"]]]["persistentVolumeClaim"]["claimName"]
    assert held == claim["metadata"]["name"]
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory"}
