"""Write the files of tests/earlier/files with whichever ucgm is installed: `python make.py OUT`.

A run folder after 4 of 8 steps, its few-step tuning, the digests of both after 8 steps, a benchmark
report, a set of latents and an exported pipeline, all by the commands that a user types.  They were
written by commit 87a493d, before the package was rearranged; test_earlier_files.py reads them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from kernels import kernels
from PIL import Image
from safetensors.torch import load_file

MULTI = """
model:
  class_path: ucgm.nn.DiTConfig
  init_args: {hidden_size: 16, depth: 1, num_heads: 2, patch_size: 4}
objective:
  preset: flow_matching
  time_law: {class_path: Beta, init_args: {a: 1.5, b: 1.0}}
data: Digits
optimizer: {lr: 2.0e-2, warmup_steps: 2}
ema: {decay: 0.9, tracked: [0.05, 0.1], snapshot_every: 4}
train: {steps: 4, global_batch: 16, log_every: 2, preview_every: 100, checkpoint_every: 4}
sampler: {steps: 2, solver: adams, order: 2, clock: time, quadrature: exact}
"""
FEW = """
model: {init_args: {second_time: true}}
objective:
  preset: twinflow
  transport: {class_path: Linear}
optimizer: {name: radam, lr: 3.0e-4}
ema: {decay: 0.9, target_decay: 0.8, tracked: []}
sampler: {steps: 1, solver: ucgm, order: 1}
"""


def ucgm(*words):
    subprocess.run([sys.executable, "-m", "ucgm", *map(str, words)], check=True)


def images(folder):
    """Two classes of four 16 x 16 colour images."""
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def tiny_vae(folder):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        latent_channels=2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    model.save_pretrained(folder)


def main(out):
    Path(out).mkdir(parents=True)
    os.chdir(out)  # so that no file names a folder of this machine
    out, work = Path(), Path(".work")
    work.mkdir()
    (work / "multi.yaml").write_text(MULTI)
    (work / "few.yaml").write_text(FEW)
    multi = ("--config", work / "multi.yaml")
    both = (*multi, "--config", work / "few.yaml", "--train.init", out / "multi")
    ucgm("train", *multi, "--run-dir", out / "multi")
    ucgm("train", *both, "--run-dir", out / "few")
    after, digests = {}, {}
    for name, words in (("multi", multi), ("few", both)):
        shutil.copytree(out / name, work / name)
        ucgm("train", *words, "--train.steps", 8, "--run-dir", work / name)
        folder = work / name / "checkpoints" / "step_0000008"
        manifest = json.loads((folder / "manifest.json").read_text())
        lines = (work / name / "metrics.jsonl").read_text().splitlines()
        digests[name] = {k: v["sha256"] for k, v in sorted(manifest["files"].items())}
        keep = ("step", "loss", "grad_norm", "lr", "skipped")
        after[name] = {
            "metrics": [{k: json.loads(line)[k] for k in keep} for line in lines],
            "sums": {
                file.stem: float(sum(v.double().abs().sum() for v in load_file(file).values()))
                for file in sorted(folder.glob("*.safetensors"))
            },
        }
    ucgm(
        "benchmark",
        out / "multi",
        "--steps",
        1,
        2,
        "--num-samples",
        40,
        "--seed",
        3,
        "--out-dir",
        out / "benchmark",
    )
    Path("benchmark/benchmark.html").unlink()  # large, and never read
    images(work / "images")
    tiny_vae(work / "vae")
    ucgm(
        "encode",
        work / "images",
        "--vae",
        work / "vae",
        "--size",
        16,
        "--flips",
        "true",
        "--out",
        out / "latents",
    )
    ucgm("export", out / "multi", "--diffusers", out / "pipeline")
    after["files_by_kernels"] = {kernels(): digests}
    (out / "after_8_steps.json").write_text(json.dumps(after, indent=1) + "\n")
    shutil.rmtree(work)


if __name__ == "__main__":
    main(sys.argv[1])
