"""Settings that nobody gave: size and length of a training for its data and its device."""

from typing import Any

from ucgm.data import Dataset
from ucgm.runs.config import Config, flat

Layer = dict[str, Any]


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
    if config.ema.std is not None:  # an average whose length follows that of the run
        names.remove("ema.decay")
    shown = ", ".join(f"{n} {values[n]}" for n in names if not n.endswith("_every"))
    return f"chosen for these data and this device: {shown}"
