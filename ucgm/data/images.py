"""Pixels: the one rule between float and uint8, and contact sheets for people to look at.

    to_uint8(x)   = floor(clamp(127.5 x + 128, 0, 255))     (rounds 127.5 (x + 1) to nearest)
    from_uint8(u) = u / 127.5 - 1

so that ``to_uint8(from_uint8(u)) == u`` for all 256 levels.  This is the rule of EDM (2206.00364),
DiT (2212.09748) and SiT (2401.08740); the floor of ``127.5 (x + 1)`` used elsewhere darkens the
mean by half a level.  The function in this file is the only conversion in the package, and the
benchmark prints its name.
"""

import math

import torch
from PIL import Image
from torch import Tensor

UINT8_RULE = "floor(clamp(127.5 x + 128, 0, 255)): round to nearest"


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], any shape and float dtype, to uint8; values outside are clamped.

    Raises:
        ValueError: if x holds NaN or infinity, which no rule can turn into a colour.
    """
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(
            f"{bad} of {x.numel()} pixel values are not finite: the network or the sampler "
            "diverged. Look at the training log, or sample in float32."
        )
    return (x.float() * 127.5 + 128.0).clamp_(0.0, 255.0).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 of any shape to float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1.0


def grid(images: Tensor, columns: int | None = None, upscale: int | None = None) -> Image.Image:
    """A contact sheet in reading order, with one white pixel between and around the images.

    Args:
        images: (N, 1 or 3, H, W) uint8.
        columns: images per row; about the square root of N when None.
        upscale: nearest-neighbour factor; when None, tiny images grow to about 48 pixels.

    Returns:
        a PIL image of mode L or RGB.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"a grid needs (N, 1 or 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}; "
            "use Dataset.decode first."
        )
    count, channels, height, width = images.shape
    columns = columns or max(1, round(math.sqrt(count)))
    upscale = upscale or max(1, round(48 / max(height, width)))
    images = images.cpu().repeat_interleave(upscale, 2).repeat_interleave(upscale, 3)
    height, width = height * upscale, width * upscale
    rows = -(-count // columns)
    sheet = torch.full(
        (channels, rows * (height + 1) + 1, columns * (width + 1) + 1), 255, dtype=torch.uint8
    )
    for index, image in enumerate(images):
        top = (index // columns) * (height + 1) + 1
        left = (index % columns) * (width + 1) + 1
        sheet[:, top : top + height, left : left + width] = image
    return to_pil(sheet)


def to_pil(image: Tensor) -> Image.Image:
    """(1 or 3, H, W) uint8 to a PIL image of mode L or RGB."""
    array = image.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0).copy())
