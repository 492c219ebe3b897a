"""Settings that nobody gave: size, length and optimizer for the data and the device."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from ucgm.data import Dataset
from ucgm.data.sets.image_folder import ImageDataset
from ucgm.nn import NetworkConfig
from ucgm.nn.configs import TransformerConfig
from ucgm.objective import POST_TRAINING
from ucgm.runs.config import Config, flat
from ucgm.runtime.processes import best_device
from ucgm.transport import Linear

Layer = dict[str, Any]
DEFAULTS = ("multi_step", "few_step")
"""Presets whose optimizer and average follow from network and length; the first is the default."""
FITTED = frozenset(
    f"{section}.{key}"
    for section, keys in {
        "train": "steps global_batch log_every preview_every checkpoint_every",
        "optimizer": "name lr betas schedule warmup_steps",
        "ema": "decay std",
        "data": "channels",
        "model": "size convention",
        "objective": "time_law enhancement_ratio",
    }.items()
    for key in keys.split()
)
"""Settings that :func:`fitted_layer` may choose."""


def fitted_layer(
    dataset: Dataset, device: str, config: Config, sized: bool, given: Collection[str]
) -> Layer:
    """Size and length of a training for these data on this device, so that it ends in a success.

    Without a GPU it is minutes on two cores.  On a GPU the network grows with the number of images,
    up to the published DiT-XL of ImageNet.  A token is at least 1/8 (CPU) or 1/16 of the side.

    Args:
        dataset: of shape (C, H, W).
        device: such as ``cuda``.
        config: without it; a tuning (``train.init``) has the network of the run it starts from.
        sized: the network was given.
        given: settings that were given, such as ``train.steps``.
    """
    gpu, count, side = device.startswith("cuda"), len(dataset), dataset.shape[-1]
    parts = 16 if gpu else 8
    patch = next(p for p in range(1, side + 1) if side % p == 0 and side // p <= parts)
    size, length, batch, rate, decay, period = _budget(gpu, count)
    started = config.train.init is not None
    tuning = started and not config.train.keep_blocks  # a student of kept blocks is a new network
    if tuning:
        length, rate, decay, period = length // 8, rate / 3, min(decay, 0.99), period // 5
    if tuning and config.objective.preset in POST_TRAINING:
        length, period = length // 5, period // 5
        batch, rate, decay = 1024, 1e-5, 0.95  # arXiv 2604.28190; docs/results/posttrain.md
    length = config.train.steps if "train.steps" in given else length
    layer: Layer = {
        "train": {
            "steps": length,
            "global_batch": batch,
            "log_every": max(50, period // 10),
            "preview_every": period,
            "checkpoint_every": period,
        },
        "optimizer": {"lr": rate, "warmup_steps": 0 if tuning else min(1000, length // 20)},
        "ema": {"decay": decay},
    }
    # Whatever file gives a length, a batch or a period means it, also one below the preset.
    layer["train"] = {k: v for k, v in layer["train"].items() if f"train.{k}" not in given}
    open_choice = not started and "data.channels" not in given
    if open_choice and isinstance(dataset, ImageDataset) and dataset.channels_that_fit() == 1:
        layer["data"] = {"channels": 1}
    if not (sized or started):
        layer["model"] = {"size": f"{size}/{patch}"}
    if config.objective.preset in DEFAULTS:
        model = config.model if sized or started else replace(config.model, **layer["model"])
        whole = config.train.sharding == "none"
        name = config.optimizer.name if "optimizer.name" in given else None
        layer["optimizer"] |= _optimizer(model, whole, tuning, length, name)
        layer["ema"] = {"std": 0.1}
        few = config.objective.preset == "few_step"
        if few == started and _drawn(dataset):  # a tuning, or a network that begins
            layer |= _tuned_drawings(given) if few else _of_drawings(layer, config, given)
    return layer


def _budget(gpu: bool, count: int) -> tuple[str, int, int, float, float, int]:
    """Size, steps, batch, rate, decay of the average and steps between pictures, from the start."""
    if not gpu:
        return "T", 4000, 64, 1e-3, 0.999, 500
    if count < 20_000:
        return "S", 50_000, 256, 3e-4, 0.9995, 2500
    if count < 300_000:
        return "B", 200_000, 256, 2e-4, 0.9999, 5000
    return "XL", 400_000, 256, 2e-4, 0.9999, 5000


def _drawn(dataset: Dataset) -> bool:
    """Whether images are mostly background, as drawings, letters and sprites are."""
    return isinstance(dataset, ImageDataset) and dataset.flat_share() > 2 / 3


def _of_drawings(layer: Layer, config: Config, given: Collection[str]) -> Layer:
    """Sections of a multi-step training on drawings: the network says the data, at later times.

    The data of a drawing are a few flat values, which a network can say exactly, and its noise is
    not (JiT, arXiv 2511.13720); docs/results/recipe.md has what it gains, and that photographs
    lose by it.
    """
    found: Layer = {}
    if "objective.time_law" not in given:
        later = {"class_path": "LogitNormal", "init_args": {"mean": 1.0, "std": 1.0}}
        found["objective"] = {"time_law": later}
    fits = isinstance(config.model, TransformerConfig) and config.objective.transport == Linear()
    if fits and "model.convention" not in given:
        found["model"] = layer.get("model", {}) | {"convention": "jit"}
    return found


def _tuned_drawings(given: Collection[str]) -> Layer:
    """Sections of a few-step tuning on drawings: more guidance, see docs/results/recipe.md."""
    guided = "objective.enhancement_ratio" in given
    return {} if guided else {"objective": {"enhancement_ratio": 1.3}}


def _optimizer(
    model: NetworkConfig, whole: bool, tuning: bool, length: int, name: str | None
) -> Layer:
    """Muon for transformers whose matrices are ``whole``, AdamW otherwise and in a ``tuning``.

    The rate falls as one over the width, which keeps the change of a layer's output in a step the
    same (arXiv 2203.03466, table 3), and rises in a tuning of fewer than 500 steps, as one over the
    root of the ``length``; the numbers are those of docs/results/recipe.md.  It belongs to the
    optimizer, also where that was given by its ``name``.
    """
    numbers = model.defaults()[1] | {k: v for k, v in vars(model).items() if v is not None}
    width = numbers.get("hidden_size") or numbers.get("model_channels")
    width = width or numbers.get("channels", [96])[-1]  # a network of the user's own has none
    if name is None:
        blocks = isinstance(model, TransformerConfig)
        name = "muon" if blocks and whole and not tuning else "adamw"
    rate = {"muon": 1e-2, "lion": 7e-4}.get(name, 2e-3)
    rate *= 0.5 * max(1.0, (500 / length) ** 0.5) if tuning else 1.0
    rate = float(f"{rate * 96 / width:.2g}")
    return {"name": name, "lr": rate, "betas": (0.9, 0.95), "schedule": "cosine"}


def describe_fitted(config: Config, fitted: Layer) -> str:
    """Lines that say what was chosen and why, as the settings that change it."""
    values, lines = flat(config), dict[str, list[str]]()
    names = [f"{section}.{key}" for section, part in fitted.items() for key in part]
    if config.ema.std is not None:  # an average whose length follows that of the run
        names = [name for name in names if name != "ema.decay"]
    for name in names:
        if not name.endswith("_every"):
            value = values.get(name, getattr(config.objective, name.partition(".")[2], None))
            lines.setdefault(_reason(config, name), []).append(f"{name} {value}")
    said = (f"\n  {', '.join(chosen)}  ({reason})" for reason, chosen in lines.items())
    return f"chosen for these data and this device; each can be set:{''.join(said)}"


def _reason(config: Config, name: str) -> str:
    """Why ``name`` was chosen as it was."""
    gpu = best_device().startswith("cuda")
    if name == "data.channels":
        return "the images are grey"
    if name in ("model.convention", "objective.time_law", "objective.enhancement_ratio"):
        return "the images are drawings: most of each has one value"
    if config.objective.preset in POST_TRAINING:
        return "as in docs/results/posttrain.md"
    if name in ("model.size", "train.steps", "train.global_batch"):
        if name == "train.steps" and config.train.init and not config.train.keep_blocks:
            return "a tuning: an eighth of what is chosen for a training from the start here"
        return "for a GPU and so many images" if gpu else "there is no GPU"
    if config.objective.preset in DEFAULTS and name != "optimizer.warmup_steps":
        rate = name == "optimizer.lr"
        return "for a network of this width" if rate else "as in docs/results/recipe.md"
    return "for this network and so many steps"
