"""Patches: crops of candidates, their embedding for the observer, images stitched of them.

An image of a set with ``factor`` f holds f x f patches; patch k of image i is the candidate of rank
k * ipc + i, so that every image has one of each quarter of the ranks (RDED, arXiv 2312.03526).
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional


def moved(images: Tensor, matrix: Tensor) -> Tensor:
    """Images (B, C, H, W) under affine changes (B, 2, 3)."""
    places = functional.affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, places, padding_mode="border", align_corners=False)


def crops(
    images: Tensor, count: int, scale: tuple[float, float], side: int, generator: torch.Generator
) -> Tensor:
    """Square crops (n, count, C, side, side) of images (n, C, H, H) in [-1, 1], of random size and
    place; a single crop of scale (1, 1) is the whole image.
    """
    n, size = len(images), images.shape[-1]
    low, high = scale
    area = low + (high - low) * torch.rand(n, count, 1, generator=generator)
    share = area.sqrt()
    corner = torch.rand(n, count, 2, generator=generator) * (1.0 - share)
    centre = 2.0 * corner + share - 1.0
    matrix = torch.zeros(n, count, 2, 3)
    matrix[..., 0, 0] = matrix[..., 1, 1] = share[..., 0]
    matrix[..., 2] = centre
    # In the size of the image first: sampled at once, one pixel would stand for several.
    found = moved(images.repeat_interleave(count, 0), matrix.flatten(0, 1))
    if side < size:
        found = functional.interpolate(
            found, size=(side, side), mode="bilinear", antialias=True, align_corners=False
        )
    return rearrange(found, "(n m) c h w -> n m c h w", n=n)


def embed(patches: Tensor, side: int) -> Tensor:
    """Patches (n, C, h, h) as images (n, C, side, side): in the centre of their mean colour."""
    below = (side - patches.shape[-1]) // 2
    above = side - patches.shape[-1] - below
    mean = patches.mean((0, 2, 3), keepdim=True)
    return functional.pad(patches - mean, (below, above, below, above)) + mean


def stitch(patches: Tensor, factor: int) -> Tensor:
    """Patches (f f ipc, C, h, w), best first, to images (ipc, C, f h, f w)."""
    return rearrange(patches, "(a b i) c h w -> i c (a h) (b w)", a=factor, b=factor)


def split(images: Tensor, factor: int) -> Tensor:
    """The inverse of :func:`stitch`: (ipc, C, f h, f w) to (f f ipc, C, h, w)."""
    side = images.shape[-1]
    if side % factor or images.shape[-2] % factor:
        raise ValueError(
            f"images of {side} pixels do not divide into {factor}x{factor} patches: choose another "
            "factor"
        )
    return rearrange(images, "i c (a h) (b w) -> (a b i) c h w", a=factor, b=factor)
