"""Where the statistics of a codec come from: normalised = (raw - mean_c) / std_c * scale.

scale     mean = the VAE's shift, std = 1, scale = its factor (DiT, SiT: 0.18215)
channel   mean and std over the data, scale = 1 (LightningDiT, 2501.01423)
edm2      the constants and final std 0.5 of 2312.02696, for the SD-VAEs
none      raw latents as they are (RAE, whose statistics are inside)
FILE      mean and std of LightningDiT and UCGM {mean, std}, or of REPA-E (2504.10483)
          {latents_scale, latents_bias}: normalised = (raw - bias) * scale
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ucgm.data.latents.autoencoder import Autoencoder, Store
from ucgm.runtime.reading import read_json, read_tensors

_OURS, _REPAE = ("mean", "std"), ("latents_bias", "latents_scale")
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
        ValueError: not there, without {mean, std} and {latents_scale, latents_bias}, or with
            numbers that cannot be divided by.
    """
    if not path.exists():
        raise ValueError(
            f"there is no statistics file {path}; normalise is a file, or one of scale, channel, "
            "edm2, none."
        )
    content = read_json(path) if path.suffix == ".json" else read_tensors(path)
    names = next((n for n in (_OURS, _REPAE) if set(n) <= content.keys()), None)
    if names is None:
        raise ValueError(f"{path} has {sorted(content)}: it needs mean and std of each channel.")
    try:
        mean, std = (torch.as_tensor(content[n], dtype=torch.float64).flatten() for n in names)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{path} has {' and '.join(names)} that are no numbers: {error}"
        ) from error
    std = 1.0 / std if names == _REPAE else std
    if len(mean) != len(std):
        raise ValueError(f"{path} has {len(mean)} means and {len(std)} deviations.")
    bad = torch.nonzero(~(mean.isfinite() & std.isfinite() & (std > 0))).flatten().tolist()
    if bad:
        raise ValueError(
            f"{path} has mean {mean[bad[0]]:g} and deviation {std[bad[0]]:g} for channel {bad[0]}: "
            "means must be finite, deviations finite and above 0."
        )
    return mean, std


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
