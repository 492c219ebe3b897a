"""Features of a fixed small network with random weights: images of any size, and no download.

    three convolutions of 3x3 with leaky ReLUs, halved between them; the means of 16 channels over a
    2x2 grid are the 64 features

Features of random convolutions see colours, edges and textures and where they are, and nothing of
what is shown.  Their Frechet distance orders runs on one data set; it is no FID.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ucgm.data.extractor import Extractor, register_extractor
from ucgm.data.pixels import from_uint8
from ucgm.evaluation.metrics.reference import digest_of

CHANNELS = (3, 32, 64, 16)
GRID = 2


class RandomFeatures(nn.Module):
    """Three convolutions whose weights come from seed 0 and stay."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernels = nn.ParameterList(
            torch.randn(wide, narrow, 3, 3, generator=generator) * math.sqrt(2 / (9 * narrow))
            for narrow, wide in pairwise(CHANNELS)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 of any size to features (B, 64)."""
        x = from_uint8(images)
        for number, kernel in enumerate(self.kernels):
            x = F.avg_pool2d(x, 2, ceil_mode=True) if number else x
            x = F.leaky_relu(F.conv2d(x, kernel, padding=1), 0.2)  # none is always 0
        return {"features": F.adaptive_avg_pool2d(x, GRID).flatten(1)}


def build_random(weights: str | None = None) -> Extractor:
    """The random network as an extractor; its digest is that of its weights.

    Raises:
        ValueError: for a file of weights, of which it has none.
    """
    if weights is not None:
        raise ValueError("extractor random has no weights file: leave out --extractor-weights.")
    module = RandomFeatures()
    return Extractor(
        name="random",
        digest=digest_of(*module.kernels),
        module=module,
        dimensions={"features": CHANNELS[-1] * GRID**2},
        channels=3,
        note="a fixed random network: its distances compare runs with each other, they are not FID",
    )


register_extractor("random", build_random)
