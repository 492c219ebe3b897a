"""Kill every command at random moments, run it again to its end, and compare what is there.

    python scripts/kill_commands.py --runs 10 --out docs/results/kill_commands.txt

A command is first left alone.  Then, in each of ``--runs`` runs, it is ended by SIGKILL one to
three times after a random part of the time it takes, and run again until it finishes.  Then two of
it are started at once.  Every time the whole folder around its output must be that of the command
that was left alone, byte for byte and file for file: what a kill leaves must be gone in the end.
Of two at once the second ends in one line that names the first, or comes after it.

The clocks that the commands write into their files are stopped, so that they are compared as well.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import accelerate  # noqa: F401  imported before the first fork
import diffusers.models  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import numpy as np
import torch
from killing import end, fork, refuse_threads
from PIL import Image

import ucgm.condense.build
import ucgm.condense.command
import ucgm.data.encoding.command
import ucgm.evaluation.compare
import ucgm.evaluation.tuning.tune
import ucgm.integrations.export  # noqa: F401
from ucgm.cli.commands import main as ucgm_main
from ucgm.data import Digits
from ucgm.evaluation import benchmark, chunks, evaluate
from ucgm.nn import DiTConfig
from ucgm.objective import preset
from ucgm.runs.config import Config
from ucgm.runs.settings import EMAConfig, OptimizerConfig, TrainConfig
from ucgm.sampler import Sampler
from ucgm.training.loop import train

SETTINGS = Config(
    model=DiTConfig(size="T/4"),
    objective=preset("ucgm_multi"),
    data=Digits(),
    optimizer=OptimizerConfig(lr=1e-3),
    ema=EMAConfig(tracked=(0.05, 0.1), snapshot_every=10),
    train=TrainConfig(steps=40, global_batch=8, preview_every=40, checkpoint_every=40),
    sampler=Sampler(steps=2),
)
# RUN, OUT and IMAGES are replaced; what is compared is the folder that RUN and OUT lie in.
COMMANDS = {
    "sample": "sample RUN --num-images 200 --steps 4 --out-dir OUT",
    "sample (npz)": "sample RUN --num-images 200 --steps 4 --out-dir OUT --format npz",
    "ema": "ema RUN --std 0.05 0.06 0.07 0.08 0.09 0.1",
    "tune-sampler": "tune-sampler RUN --nfe 2 --out-dir OUT --candidates 4 "
    "--samples 30 --rungs 2 --final-samples 40 --repeats 1",
    "benchmark": "benchmark RUN --steps 1 2 --num-images 100 --chunk-size 16 --out-dir OUT",
    "reference": "reference digits OUT.npz --shard-size 150",
    "encode": "encode IMAGES --vae identity --size 16 --out OUT --shard-size 25 --num-workers 0",
    "export": "export RUN --diffusers OUT --raw --bundle-code",
    "evaluate": "evaluate IMAGES --reference REFERENCE --out-dir OUT",
    "condense": "condense RUN OUT --ipc 5 --accept false --steps 2 --observer-steps 200",
}
REFUSED = re.compile(r"ucgm [\w-]+: error: ucgm [\w-]+ \(process \d+ on \S+\) is writing [^\n]+\n")
DONE = re.compile(r"ucgm [\w-]+: error: [^\n]+ (exists and was not|holds something)[^\n]+\n")


@dataclass
class Case:
    """A command, and what happened to it.

    Attributes:
        name: of the command.
        words: of the command line.
        place: folder that holds its output and its run.
        fresh: what is in ``place`` before.
        kills: how many lives were ended.
        left: what kills left, by kind.
        pairs: how two at once ended.
    """

    name: str
    words: list[str]
    place: Path
    fresh: Path
    seconds: float = 0.0
    kills: int = 0
    left: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    expected: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.place.with_suffix(".log")

    def start(self) -> int:
        """One life of the command."""
        return fork(functools.partial(ucgm_main, self.words), self.log)

    def reset(self) -> None:
        """Put the folder back to what it was before the command."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.fresh, self.place)
        self.log.unlink(missing_ok=True)

    def contents(self) -> dict[str, str]:
        """Digest of every file and name of every folder in the place, hidden ones too."""
        return {
            str(path.relative_to(self.place)): digest(path) if path.is_file() else ""
            for path in sorted(self.place.rglob("*"))
        }

    def fail(self, reason: str) -> None:
        """End the program with what differs."""
        found = self.contents()
        names = sorted(found.items() ^ self.expected.items())
        sys.exit(
            f"{self.name}: {reason}\ndiffering files: {sorted({name for name, _ in names})}\n"
            f"{self.log.read_text()[-3000:]}"
        )


def digest(path: Path) -> str:
    """SHA-256 of a file; safetensors writes the facts of a header in any order."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        end_of_header = 8 + int.from_bytes(content[:8], "little")
        header = json.dumps(json.loads(content[8:end_of_header]), sort_keys=True)
        content = header.encode() + content[end_of_header:]
    return hashlib.sha256(content).hexdigest()


def straight(case: Case) -> None:
    """Let the command alone; what it makes is what is right."""
    case.reset()
    began = time.monotonic()
    if end(case.start()):
        sys.exit(f"{case.name}\n{case.log.read_text()}")
    case.seconds, case.expected = time.monotonic() - began, case.contents()


def killed(case: Case, rng: random.Random, kills: int) -> bool:
    """Kill the command up to ``kills`` times, let it finish, compare; whether one kill met it."""
    case.reset()
    seen = case.kills
    while True:
        before = case.log.stat().st_size if case.log.exists() else 0
        delay = rng.uniform(0.0, case.seconds) if case.kills < seen + kills else None
        code = end(case.start(), delay)
        if code == -signal.SIGKILL:
            case.kills += 1
            case.left[left_behind(case)] += 1
            continue
        # A kill may come after the last file has its name.
        after_the_end = code == 2 and DONE.search(case.log.read_text()[before:])
        if code and not after_the_end:
            case.fail(f"exit code {code} after {case.kills - seen} kills")
        if case.contents() != case.expected:
            case.fail(f"differs after {case.kills - seen} kills")
        return case.kills > seen


def left_behind(case: Case) -> str:
    """What the kill interrupted, by what it left."""
    found = case.contents()
    if found == case.expected:
        return "when all was there"
    names = found.keys() - case.expected.keys()
    if any(name.endswith(".tmp") for name in map(os.path.basename, names)):
        return "a file or folder being written"
    if any(name.endswith(".lock") for name in names):
        return "other work"
    return "before the lock, or after it"


def two_at_once(case: Case, delay: float) -> None:
    """Start a second one ``delay`` seconds after the first."""
    case.reset()
    first = case.start()
    time.sleep(delay)
    second = case.start()
    codes = sorted((end(first), end(second)))
    said = case.log.read_text()
    if case.contents() != case.expected:
        case.fail(f"differs after two at once, {codes}")
    if codes == [0, 0]:
        case.pairs["one after the other"] += 1
    elif codes == [0, 2] and len(REFUSED.findall(said)) == 1:
        case.pairs["refused in one line"] += 1
    elif codes == [0, 2] and len(DONE.findall(said)) == 1:
        case.pairs["refused: it is there"] += 1
    else:
        case.fail(f"two at once end with {codes}")


def stop_clocks() -> None:
    """Make everything that is written a function of the command."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz=UTC):
            return datetime(2000, 1, 1, tzinfo=tz)

    chunks.Stopwatch.time = lambda *_: contextlib.nullcontext()
    machine = benchmark.machine(benchmark.World(), 1)
    benchmark.machine = lambda *_: machine
    evaluate.datetime = ucgm.condense.command.datetime = Stopped
    ucgm.condense.build.time = argparse.Namespace(perf_counter=lambda: 0.0)


def prepare(folder: Path) -> list[Case]:
    """A trained run, images and a reference, and the cases on them."""
    fresh, images, reference = folder / "fresh", folder / "images", folder / "reference.npz"
    end(fork(lambda: train(SETTINGS, fresh / "run"), folder / "train.log"))
    rng = np.random.default_rng(0)
    for k in range(150):
        path = images / "abc"[k % 3] / f"{k:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    words = f"reference {images} {reference} --extractor random".split()
    if end(fork(functools.partial(ucgm_main, words), folder / "train.log")):
        sys.exit((folder / "train.log").read_text())
    cases = []
    for name, line in COMMANDS.items():
        place = folder / f"case_{len(cases)}"
        places = {"RUN": place / "run", "OUT": place / "out", "IMAGES": images}
        places["REFERENCE"] = reference
        for word, path in places.items():
            line = re.sub(rf"\b{word}\b", str(path), line)
        cases.append(Case(name, line.split(), place, fresh))
    return cases


def main() -> None:
    """Kill, finish, compare, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one command")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stop_clocks()
    refuse_threads()
    began, rng, report = time.time(), random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        for case in prepare(Path(folder)):
            if options.only not in (None, case.name):
                continue
            straight(case)
            done = 0
            while done < options.runs:
                done += killed(case, rng, 1 + done % 3)
            for number in range(options.pairs):
                two_at_once(case, case.seconds * number / options.pairs)
            report += [
                f"{case.name:13} {done} runs, {case.kills} kills, {len(case.expected)} files and "
                f"folders, {case.seconds:.1f} s alone",
                *(f"  {count:4d}  killed: {moment}" for moment, count in case.left.most_common()),
                *(f"  {count:4d}  two at once: {how}" for how, count in case.pairs.most_common()),
            ]
            print("\n".join(report[-1 - len(case.left) - len(case.pairs) :]), flush=True)
    report += [
        "",
        "Every result equals that of the command left alone, byte for byte, with no file more.",
        f"Seed {options.seed}, {time.time() - began:.0f} s in all; torch {torch.__version__}, "
        "1 thread.",
    ]
    print("\n".join(report[-2:]))
    if options.out:
        options.out.write_text("\n".join(["python " + " ".join(sys.argv), "", *report, ""]))


if __name__ == "__main__":
    main()
