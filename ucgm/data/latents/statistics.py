"""Where the statistics of a codec come from: normalised = (raw - mean_c) / std_c * scale.

scale     mean = the VAE's shift, std = 1, scale = its factor (DiT, SiT: 0.18215)
channel   mean and std over the data, scale = 1 (LightningDiT, 2501.01423)
edm2      the constants and final std 0.5 of 2312.02696, for the SD-VAEs
none      raw latents as they are (RAE, whose statistics are inside)
FILE      mean and std of LightningDiT and UCGM {mean, std}, or of REPA-E (2504.10483)
          {latents_scale, latents_bias}: normalised = (raw - bias) * scale
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ucgm.data.latents.autoencoder import Autoencoder, Store

EDM2_MEAN = (5.81, 3.25, 0.12, -2.15)
EDM2_STD = (4.17, 4.62, 3.71, 3.28)


def normalisation(
    rule: str, autoencoder: Autoencoder, data: tuple[Tensor, Tensor] | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Mean (C,), std (C,) and scale by ``rule``, see the head of this file.

    Args:
        rule: scale, channel, edm2, none or a path.
        autoencoder: for its own factor.
        data: mean (C,) and std (C,) of the data, for ``channel``.
        channels: of the latents.
    """
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    if rule == "none":
        return zeros, ones, 1.0
    if rule == "scale":
        factor, shift = autoencoder.scale
        return (shift,) * channels, ones, factor
    if rule == "edm2":
        return EDM2_MEAN, EDM2_STD, 0.5
    if rule == "channel":
        assert data is not None
        mean, std = data
    else:
        mean, std = read_statistics(Path(rule))
    return tuple(mean.tolist()), tuple(std.tolist()), 1.0


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Mean (C,) and std (C,) of raw latents from a file of LightningDiT, UCGM or REPA-E.

    Raises:
        ValueError: not there, or without {mean, std} and {latents_scale, latents_bias}.
    """
    try:
        if path.suffix == ".json":
            content = {k: torch.tensor(v) for k, v in json.loads(path.read_text()).items()}
        elif path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(
            f"there is no statistics file {path}; normalise is a file, or one of scale, channel, "
            "edm2, none."
        ) from None
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as statistics: {error}") from error
    if {"mean", "std"} <= content.keys():
        mean, std = content["mean"], content["std"]
    elif {"latents_scale", "latents_bias"} <= content.keys():
        mean, std = content["latents_bias"], 1.0 / content["latents_scale"].double()
    else:
        raise ValueError(f"{path} has {sorted(content)}: it needs mean and std of each channel.")
    return mean.double().flatten(), std.double().flatten()


def channel_moments(stored: Tensor, store: Store) -> tuple[int, Tensor, Tensor]:
    """Count, mean (C,) and sum of squared deviations (C,) of raw latents, in float64.

    Args:
        stored: (n, C, h, w), or (n, 2C, h, w) of moments, whose samples have the variance of the
            means plus the mean of the variances.
        store: what these are.
    """
    values = stored.double()
    extra = torch.zeros((), dtype=torch.float64)
    if store == "moments":
        values, std = values.chunk(2, dim=1)
        extra = std.square().sum(dim=(0, 2, 3))
    count = values.numel() // values.shape[1]
    mean = values.mean(dim=(0, 2, 3))
    squares = (values - mean[None, :, None, None]).square().sum(dim=(0, 2, 3)) + extra
    return count, mean, squares


def merge_moments(parts: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean (C,) and standard deviation (C,) of the union (Chan, Golub and LeVeque, 1979)."""
    count, mean, squares = parts[0]
    for other, other_mean, other_squares in parts[1:]:
        delta, total = other_mean - mean, count + other
        mean = mean + delta * (other / total)
        squares = squares + other_squares + delta.square() * (count * other / total)
        count = total
    return mean, (squares / count).sqrt()
