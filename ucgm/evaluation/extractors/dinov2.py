"""DINOv2 (2304.07193) as a feature extractor: FD-DINOv2 (2306.04675) is the Frechet distance of
its class tokens.

The network is the ViT whose weights Meta publishes (``dinov2_vitl14_pretrain.pth`` for the usual
number); width and depth are read off the weights file.  Images are resized to 224 with an
antialiased bicubic filter, not rounded, and normalised with ImageNet's mean and deviation.
torch-fidelity resizes without antialiasing, and its number is another one.
"""

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ucgm.data.extractor import Extractor, register_extractor
from ucgm.nn.layers import Attention
from ucgm.runtime.files import sha256
from ucgm.runtime.reading import read_tensors

URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD_WIDTH = 64


class Block(nn.Module):
    """Pre-norm transformer block with one factor per channel (LayerScale) on either branch;
    parameters are named as in the published file.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, width // HEAD_WIDTH)
        self.ls1 = nn.ParameterDict({"gamma": torch.ones(width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )
        self.ls2 = nn.ParameterDict({"gamma": torch.ones(width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        x = x + self.ls1["gamma"] * self.attn(self.norm1(x))
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.ls2["gamma"] * self.mlp["fc2"](hidden)


class DinoV2(nn.Module):
    """The published ViT without registers.

    Args:
        width: channels of a token.
        depth: number of blocks.
        patch: side of a patch.
        grid: side of the position table in patches (37 for the published weights).
        size: side of the images in pixels.
    """

    def __init__(self, width: int, depth: int, patch: int, grid: int, size: int = 224) -> None:
        super().__init__()
        self.size, self.patch, self.grid = size, patch, grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self) -> Tensor:
        """Position table (1, 1 + n^2, D) for the image size, as in the published code.

        There the factor of the bicubic filter is (n + 0.1) / grid, against a rounding error; the
        weights were evaluated with it, so it is part of the definition.
        """
        count = self.size // self.patch
        if count == self.grid:
            return self.pos_embed
        table = self.pos_embed[:, 1:].view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        factor = (count + 0.1) / self.grid
        table = F.interpolate(table, scale_factor=(factor, factor), mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)), dim=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 to features (B, D): the normalised class token."""
        return {"features": self.tokens(images)[:, 0]}

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to the normalised tokens of patches, (B, D, 16, 16)."""
        patches = self.tokens(images)[:, 1:].transpose(1, 2)
        return patches.unflatten(2, (self.size // self.patch,) * 2)

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to normalised tokens (B, 1 + N, D), the class token first."""
        shape = (self.size, self.size)
        x = F.interpolate(images.float(), shape, mode="bicubic", antialias=True) / 255.0
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        tokens = self.patch_embed["proj"]((x - mean) / std).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        x = x + self.positions()
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def build_dinov2(weights: str | None = None) -> Extractor:
    """DINOv2 as an extractor, from a local file of the published weights.

    Raises:
        ValueError: when there is no file, or it holds another network.
    """
    remedy = f"Get {URL} and name it with --extractor-weights PATH."
    if weights is None or not Path(weights).is_file():
        raise ValueError(f"the weights of DINOv2 are missing ({weights or 'no path'}). {remedy}")
    try:
        state = read_tensors(Path(weights))
        state.pop("mask_token", None)
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d", name))
        module = DinoV2(width, depth, patch, math.isqrt(state["pos_embed"].shape[1] - 1))
        module.load_state_dict(state)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{weights} does not hold DINOv2 ({reason}). {remedy}") from error
    return Extractor(
        name="dinov2",
        digest=sha256(weights),
        module=module,
        dimensions={"features": width},
        channels=3,
        note=f"{depth} blocks of width {width}, class token at {module.size} pixels",
        batch_size=32,
    )


register_extractor("dinov2", build_dinov2)
