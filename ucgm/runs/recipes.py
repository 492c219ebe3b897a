"""Layers of settings that nobody gave: of the preset, and of the data and the device."""

from typing import Any

from ucgm.data import Dataset
from ucgm.objective import Objective
from ucgm.runs.config import Config, flat, to_dict
from ucgm.sampler import Grid, Sampler

# What the published training of a preset sets beside the objective (github.com/LINs-lab/UCGM).
_PUBLISHED: dict[str, dict[str, Any]] = {
    "ucgm_multi": {"ema": {"target_decay": 0.999}},
    "ucgm_few": {
        "optimizer": {"name": "radam", "betas": [0.9, 0.999]},
        "train": {"grad_clip": 0.1},
    },
}

Layer = dict[str, Any]


def preset_layer(objective: Objective) -> Layer:
    """What a preset sets beside the objective: sampler, optimizer, averages.

    A network that maps every time to the data samples by renoising (arXiv 2303.01469, algorithm 1),
    with the second of two steps halfway; one that maps a time to any earlier one jumps along the
    grid, from pure noise on.
    """
    layer = dict(_PUBLISHED.get(objective.preset, {}))
    if objective.consistency_ratio > 0:
        solver = "jump" if objective.two_time else "ucgm"
        if objective.two_time and objective.destination is not None:
            sampler = Sampler(steps=2, solver=solver, grid=Grid(gap=(0.0, 0.0)))
        else:
            grid = Grid(gap=(0.001, 0.5))
            sampler = Sampler(steps=2, solver=solver, stochasticity=1.0, grid=grid)
        layer["sampler"] = to_dict(sampler)
    return layer


def fitted_layer(dataset: Dataset, device: str, tuning: bool) -> Layer:
    """Size and length of a training for these data on this device, so that it ends in a success.

    Without a GPU it is minutes on two cores.  On a GPU the network grows with the number of images,
    up to the published DiT-XL of ImageNet.  A token is at least 1/8 (CPU) or 1/16 of the side.

    Args:
        dataset: of shape (C, H, W).
        device: such as ``cuda``.
        tuning: whether it starts from a trained network, which gives the size.
    """
    gpu, count, side = device.startswith("cuda"), len(dataset), dataset.shape[-1]
    parts = 16 if gpu else 8
    patch = next(p for p in range(1, side + 1) if side % p == 0 and side // p <= parts)
    if not gpu:
        size, steps, batch, rate, decay, period = "T", 4000, 64, 1e-3, 0.999, 500
    elif count < 20_000:
        size, steps, batch, rate, decay, period = "S", 50_000, 256, 3e-4, 0.9995, 2500
    elif count < 300_000:
        size, steps, batch, rate, decay, period = "B", 200_000, 256, 2e-4, 0.9999, 5000
    else:
        size, steps, batch, rate, decay, period = "XL", 400_000, 256, 2e-4, 0.9999, 5000
    if tuning:
        steps, rate, decay, period = steps // 8, rate / 3, min(decay, 0.99), period // 5
    layer: Layer = {
        "train": {
            "steps": steps,
            "global_batch": batch,
            "log_every": max(50, period // 10),
            "preview_every": period,
            "checkpoint_every": period,
        },
        "optimizer": {"lr": rate, "warmup_steps": 0 if tuning else min(1000, steps // 20)},
        "ema": {"decay": decay},
    }
    return layer if tuning else {"model": {"size": f"{size}/{patch}"}} | layer


def describe_fitted(config: Config, fitted: Layer) -> str:
    """One line that says what was chosen, as the settings that change it."""
    values = flat(config)
    names = [f"{section}.{key}" for section, part in fitted.items() for key in part]
    shown = ", ".join(f"{n} {values[n]}" for n in names if not n.endswith("_every"))
    return f"chosen for these data and this device: {shown}"
