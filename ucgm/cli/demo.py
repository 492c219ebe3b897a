"""The whole road on the embedded digits, by the commands a user would type."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from ucgm.runtime.files import asset_path


def demo(out_dir: str = "runs/demo") -> None:
    """Train a multi-step model on the digits, tune it to two steps, sample and benchmark both.

    Args:
        out_dir: where the two run folders go; run again to continue an interrupted demo.
    """
    start = time.perf_counter()
    base, delta = (str(asset_path(f"{n}.yaml", "configs")) for n in ("digits", "digits_few"))
    multi, few = f"{out_dir}/multi", f"{out_dir}/few"
    _ucgm("train", "--config", base, "--run-dir", multi)
    _ucgm("train", "--config", base, "--config", delta, "--train.init", multi, "--run-dir", few)
    pictures = []
    for run, steps in ((multi, "8"), (few, "2")):
        folder = f"{run}/images-{steps}-steps"
        _ucgm("sample", run, "--steps", steps, "--num-images", "100", "--out-dir", folder)
        pictures.append(folder)
        _ucgm("benchmark", run, "--steps", "1", "2", "4", "8", "16")
    _summary(multi, few)
    minutes = (time.perf_counter() - start) / 60
    print(f"\nimages:   {'  '.join(pictures)}")
    print(f"the demo took {minutes:.1f} minutes")


def _ucgm(*words: str) -> None:
    """Run a command of this package in a process of its own, showing what is typed."""
    print(f"\n$ ucgm {' '.join(words)}", flush=True)
    # The model is too small to gain from threads, and on a busy machine they wait for each other.
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
    done = subprocess.run([sys.executable, "-m", "ucgm", *words], env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"`ucgm {words[0]}` ended with exit code {done.returncode}; see above")


def _summary(multi: str, few: str) -> None:
    """The two curves side by side."""
    rows = {}
    for run in (multi, few):
        newest = max(
            Path(run, "benchmark").glob("*/benchmark.json"), key=lambda p: p.stat().st_mtime
        )
        report = json.loads(newest.read_text())
        rows[run] = {row["steps"]: row["scores"] for row in report["rows"]}
        print(
            f"\nreport:   {newest.with_suffix('.md')}\npicture:  {newest.parent}/fid_vs_steps.png"
        )
    print(f"\n{'':>5}  {'multi-step model':^22}  {'tuned model':^22}")
    print(f"{'steps':>5}  {'FID':>10}  {'accuracy':>10}  {'FID':>10}  {'accuracy':>10}")
    for steps in sorted(rows[multi]):
        cells = [
            f"{rows[run][steps]['fid']:>10.3f}  {rows[run][steps]['accuracy']:>10.3f}"
            for run in (multi, few)
        ]
        print(f"{steps:>5}  {'  '.join(cells)}")
    print("FID in the feature space of the shipped digits classifier, to the training scans.")
