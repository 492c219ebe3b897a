"""Averages of the weights in RUN/ema: snapshots that a training leaves, and averages of any length
made of them afterwards, ``ucgm ema RUN --std 0.05``.

A training with ``ema.tracked`` keeps snapshots of its power-function averages.
Each is a sum of the weights of all updates with the profile p_i(k) of :mod:`ucgm.training.ema`,
so a sum of snapshots is one with the profile sum_i x_i p_i.  The coefficients make that the wanted
profile p,

    minimise  | sum_i x_i p_i - p |^2    subject to  sum_i x_i = 1

(EDM2, arXiv 2312.02696, section 3.2 and appendix C; the constraint, which is ours, keeps what does
not change in the training unchanged).  With <f, g> the integral over the run of n updates and
p_i(u) = (g_i + 1) u^g_i / n_i^(g_i + 1) on (0, n_i),

    <p_i, p_j> = (g_i + 1) (g_j + 1) min(n_i, n_j)^(g_i + g_j + 1)
                 / ((g_i + g_j + 1) n_i^(g_i + 1) n_j^(g_j + 1)).

What is left, as a share of |p|, is the *profile error*: it is known without any weights, and what
the average is off by is about that share of how far the weights moved within its length.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ucgm.runs.config import read_config
from ucgm.runs.settings import power_exponent, stem_of
from ucgm.runtime.files import sole_writer, write_atomic
from ucgm.runtime.reading import check_fields, listed, reading
from ucgm.runtime.values import checked

EMA_FOLDER = "ema"
# Above this the average is one of another length than it says.
LARGEST_ERROR = 0.1


@dataclass(frozen=True)
class Snapshot:
    """A power-function average as it was after ``updates`` updates, at training step ``step``."""

    path: Path
    std: float
    step: int
    updates: int


def save_snapshot(
    run_dir: Path, step: int, std: float, updates: int, state: dict[str, Tensor]
) -> None:
    """Keep the weights (any shape) of a power-function average as they are at ``step``."""
    name = f"step_{step:07d}_{stem_of(std)}"
    _write(run_dir, name, state, {"std": std, "step": step, "updates": updates})


def _write(run_dir: Path, name: str, state: dict[str, Tensor], facts: dict[str, Any]) -> Path:
    """RUN/ema/NAME.safetensors, with ``facts`` in its header."""
    path = run_dir / EMA_FOLDER / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in state.items()}
    # One key: several would be written in an order that changes from process to process.
    header = {"facts": json.dumps(facts)}
    write_atomic(path, lambda temporary: save_file(state, temporary, header))
    return path


def read_snapshot(path: Path) -> Snapshot:
    """What the header of a file of RUN/ema says.

    Raises:
        ValueError: not a whole file of this kind.
    """
    try:
        with reading(path), safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            check_fields(facts, {"step": int, "updates": int})
            std = checked(float, facts["std"], "std")
            return Snapshot(path, std, facts["step"], facts["updates"])
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, and make an average again with `ucgm ema`"
        ) from error


def find_snapshots(run_dir: Path) -> list[Snapshot]:
    """The snapshots of a run, oldest first.

    Raises:
        ValueError: a file that is no whole snapshot.
    """
    return [read_snapshot(p) for p in listed(run_dir / EMA_FOLDER, "step_*_std_*.safetensors")]


def inner_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """<p_i, p_j> of profiles ``a`` (N, 2) and ``b`` (M, 2), rows (gamma, updates), as (N, M)."""
    (g, n), (h, m) = a.T[:, :, None], b.T[:, None, :]
    short = np.minimum(n, m)
    # min / n_i and min / n_j are at most 1, so that no power overflows.
    powers = (short / n) ** (g + 1) * (short / m) ** (h + 1) / short
    return (g + 1) * (h + 1) / (g + h + 1) * powers


def coefficients(snapshots: np.ndarray, wanted: tuple[float, float]) -> tuple[np.ndarray, float]:
    """The share of every snapshot, and the relative error of the profile that they sum to.

    Args:
        snapshots: (N, 2) float64, (gamma, updates) of each.
        wanted: gamma and updates of the average to make.
    """
    goal = np.array([wanted], dtype=np.float64)
    gram, right = inner_products(snapshots, snapshots), inner_products(snapshots, goal)[:, 0]
    square = inner_products(goal, goal).item()
    # Profiles of late snapshots are taller; with all of norm 1 the system is better conditioned.
    scale = 1.0 / np.sqrt(np.diag(gram))
    count = len(snapshots)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram * scale[:, None] * scale
    system[:count, count] = system[count, :count] = scale
    values = np.concatenate((right * scale, [1.0]))
    shares = np.linalg.lstsq(system, values, rcond=1e-14)[0][:count] * scale
    rest = shares @ gram @ shares - 2.0 * shares @ right + square
    return shares, float(np.sqrt(max(rest, 0.0) / square))


def combine(files: list[Path], shares: np.ndarray) -> dict[str, Tensor]:
    """sum_i shares_i weights_i, summed in float64 tensor by tensor; whole numbers of the last."""
    opened = [safe_open(path, "pt") for path in files]
    names: list[str] = list(opened[-1].keys())
    state = {}
    for name in names:
        last = opened[-1].get_tensor(name)
        if last.is_floating_point():
            total = torch.zeros(last.shape, dtype=torch.float64)
            for file, share in zip(opened, shares, strict=True):
                total.add_(file.get_tensor(name), alpha=float(share))
            last = total.to(last.dtype)
        state[name] = last
    return state


def make_averages(run_dir: str, std: list[float] | None = None, step: int | None = None) -> None:
    """Make averages of other lengths from the snapshots that a training left in RUN/ema.

    Each is a file RUN/ema/std_0.050.safetensors, for `ucgm sample RUN --weights std_0.050` and
    `ucgm benchmark` alike; of an earlier step its name ends with the step.

    Args:
        run_dir: folder of the run.
        std: relative lengths: the deviation of an average's profile over the length of the run;
            0.05, 0.10, 0.15 and 0.20 when left out.
        step: training step at which the averages end, one of the snapshots'; the last when left
            out.
    """
    folder = Path(run_dir)
    read_config(folder / "config.yaml")
    lengths = [0.05, 0.1, 0.15, 0.2] if std is None else std
    exponents = [power_exponent(length) for length in lengths]
    there = find_snapshots(folder)
    if not there:
        raise ValueError(
            f"{folder} has no snapshots in {EMA_FOLDER}/: train with --ema.tracked [0.05,0.1], "
            "which keeps them every ema.snapshot_every steps"
        )
    steps = sorted({snapshot.step for snapshot in there})
    end = steps[-1] if step is None else step
    if end not in steps:
        raise ValueError(f"{folder} has no snapshot at step {end}; there are {steps}")
    used = [s for s in there if s.step <= end]
    profiles = np.array([(power_exponent(s.std), s.updates) for s in used], dtype=np.float64)
    updates = max(s.updates for s in used)
    with sole_writer(folder / EMA_FOLDER, "ucgm ema"):
        for length, exponent in zip(lengths, exponents, strict=True):
            shares, error = coefficients(profiles, (exponent, updates))
            if error > LARGEST_ERROR:
                raise ValueError(
                    f"{len(used)} snapshots up to step {end} do not make an average of length "
                    f"{length}: {error:.0%} of its profile is missing. Choose a length nearer to "
                    f"{sorted({s.std for s in used})}, or train with a shorter ema.snapshot_every"
                )
            name = stem_of(length) + ("" if step is None else f"_step_{end:07d}")
            facts = {"std": length, "step": end, "updates": updates}
            path = _write(folder, name, combine([s.path for s in used], shares), facts)
            print(f"{path}: {len(used)} snapshots, profile error {error:.2%}  (--weights {name})")
