"""What enters and leaves a diffusion transformer: times, labels, positions and patches.

Time is [cos(t' w_i), sin(t' w_i)], w_i = period^(-i/128), i = 0..127, t' = scale * t, through a
two-layer MLP; in RAE [sin(2 pi t w_i), cos(2 pi t w_i)], w_i normal, i = 0..255. Rotary positions
turn channel pairs (2i, 2i+1) of queries and keys by an angle that is linear in the row or the
column of the patch (arXiv:2104.09864, in two dimensions).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_NUM_FREQUENCIES = 128


class FixedTable(nn.Module):
    """Constants that follow from the config: never saved, never rounded by a cast of the module.

    A move or a cast of the parent recomputes the table on the new device, in float64 if the
    module became float64 and in float32 otherwise, so a bfloat16 module keeps exact angles and
    a module materialised from the meta device has no uninitialised buffer.
    """

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        table = self.compute().to(torch.get_default_device(), torch.float32)
        self.register_buffer("table", table, persistent=False)

    def compute(self) -> Tensor:
        """Return the table in float64 on the CPU."""
        raise NotImplementedError

    def _apply(self, fn, recurse: bool = True) -> FixedTable:  # noqa: ANN001
        super()._apply(fn, recurse)
        dtype = torch.float64 if self.table.dtype == torch.float64 else torch.float32
        self.table = self.compute().to(self.table.device, dtype)
        return self


class Frequencies(FixedTable):
    """Angular frequencies of the time embedding, (128,)."""

    def __init__(self, scale: float, max_period: float) -> None:
        self.scale, self.max_period = scale, max_period
        super().__init__()

    def compute(self) -> Tensor:
        """Return scale * max_period^(-i/128)."""
        steps = torch.arange(_NUM_FREQUENCIES, dtype=torch.float64, device="cpu")
        return self.scale * torch.exp(-math.log(self.max_period) / _NUM_FREQUENCIES * steps)


class Rotary(FixedTable):
    """Cosine and sine of the patch angles, (unturned + grid * grid, head_dim / 2, 2).

    Angles are position * 10000^(-4 i / head_dim). `layout="blocks"`: the first half of a head
    holds the rows, the second the columns, positions 0, 1, 2, ... (LightningDiT, TiT).
    `layout="pairs"`: pairs alternate column, row, with positions spread evenly over `extent`
    (DDT, arXiv:2504.05741). The first `unturned` tokens are not patches: their angles are 0.
    `layout="line"`: one dimension, every token turned by its place in the sequence, those first
    ones too: place * 10000^(-2 i / head_dim) (iMF, arXiv:2512.02012).
    """

    def __init__(
        self,
        head_dim: int,
        grid: int,
        layout: str = "blocks",
        extent: float | None = None,
        unturned: int = 0,
    ) -> None:
        if head_dim % 4:
            raise ValueError(
                f"rope needs a head size divisible by 4, got {head_dim}: "
                "change num_heads or hidden_size, or set rope=False"
            )
        self.head_dim, self.grid, self.layout, self.extent = head_dim, grid, layout, extent
        self.unturned = unturned
        super().__init__()

    def of_pass(self) -> Tensor:
        """The table, as a view on which the blocks of one pass share what they make of it."""
        return self.table[:]

    def compute(self) -> Tensor:
        """Return [cos, sin] of every channel pair of every patch."""
        options = {"dtype": torch.float64, "device": "cpu"}
        if self.layout == "line":
            frequency = 10000.0 ** (-torch.arange(0, self.head_dim, 2, **options) / self.head_dim)
            angle = torch.arange(self.unturned + self.grid**2, **options)[:, None] * frequency
            return torch.stack([angle.cos(), angle.sin()], dim=-1)
        frequency = 10000.0 ** (-torch.arange(0, self.head_dim, 4, **options) / self.head_dim)
        position = torch.arange(self.grid, **options)
        if self.extent is not None:
            position = torch.linspace(0, self.extent, self.grid, **options)
        angle = position[:, None] * frequency
        rows = angle[:, None].expand(-1, self.grid, -1)
        columns = angle[None].expand(self.grid, -1, -1)
        if self.layout == "blocks":
            angle = torch.cat([rows, columns], dim=-1)
        else:
            angle = torch.stack([columns, rows], dim=-1).flatten(2)
        angle = F.pad(angle.flatten(0, 1), (0, 0, self.unturned, 0))
        return torch.stack([angle.cos(), angle.sin()], dim=-1)


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed position embedding, (1, grid * grid, width), float32 (MAE, arXiv:2111.06377).

    The first half of the channels encodes the column, the second the row, each as
    [sin(p w_i), cos(p w_i)] with w_i = 10000^(-4 i / width).
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a hidden_size divisible by 4, got {width}")
    options = {"dtype": torch.float64, "device": "cpu"}
    omega = 10000.0 ** (-torch.arange(width // 4, **options) / (width // 4))
    angle = torch.arange(grid, **options)[:, None] * omega
    wave = torch.cat([angle.sin(), angle.cos()], dim=-1)
    columns, rows = wave[None].expand(grid, -1, -1), wave[:, None].expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)[None].float()


class ScalarEmbedder(nn.Module):
    """Embed a scalar per row (a time) through sinusoids and a two-layer MLP."""

    def __init__(self, width: int, scale: float, max_period: float) -> None:
        super().__init__()
        self.frequencies = Frequencies(scale, max_period)
        self.mlp = nn.Sequential(
            nn.Linear(2 * _NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Map `t` (B,) to (B, width); float32 or wider even under autocast."""
        with torch.autocast(t.device.type, enabled=False):
            angle = t.to(self.frequencies.table.dtype)[:, None] * self.frequencies.table
            wave = torch.cat([angle.cos(), angle.sin()], dim=-1)
            return self.mlp(wave.to(cast(nn.Linear, self.mlp[0]).weight.dtype))


class FourierEmbedder(nn.Module):
    """Embed a scalar per row through random sinusoids, fixed and stored, and a two-layer MLP."""

    W: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("W", torch.randn(2 * _NUM_FREQUENCIES))
        self.mlp = nn.Sequential(
            nn.Linear(4 * _NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def _apply(self, fn, recurse: bool = True) -> FourierEmbedder:  # noqa: ANN001
        """Move, or cast to no less than float32: an angle of bfloat16 would be off by degrees."""
        before = self.W
        super()._apply(fn, recurse)
        if self.W.dtype in (torch.float16, torch.bfloat16):
            self.W = before.to(self.W.device)
        return self

    def forward(self, t: Tensor) -> Tensor:
        """Map `t` (B,) to (B, width); float32 or wider even under autocast."""
        with torch.autocast(t.device.type, enabled=False):
            angle = 2 * math.pi * t.to(self.W.dtype)[:, None] * self.W
            wave = torch.cat([angle.sin(), angle.cos()], dim=-1)
            return self.mlp(wave.to(cast(nn.Linear, self.mlp[0]).weight.dtype))


class PatchEmbedder(nn.Module):
    """Project every p x p patch of an image to a token, through `bottleneck` channels if given.

    `bias` is that of the first of the two maps then (JiT: none, pMF: one).
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        patch_size: int,
        bottleneck: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        side: Any = dict(kernel_size=patch_size, stride=patch_size)
        if bottleneck is None:
            self.proj = nn.Conv2d(in_channels, width, **side)
        else:  # the names of JiT
            self.proj1 = nn.Conv2d(in_channels, bottleneck, bias=bias, **side)
            self.proj2 = nn.Conv2d(bottleneck, width, 1)
        self.layers = ("proj",) if bottleneck is None else ("proj1", "proj2")

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (B, C, H, W) to (B, H W / p^2, width)."""
        # A matrix product: for so few channels it beats the convolution on every device.
        p = self.patch_size
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        for name in self.layers:
            layer: Any = getattr(self, name)
            patches = F.linear(patches, layer.weight.flatten(1), layer.bias)
        return patches


def unpatchify(tokens: Tensor, patch_size: int, grid: int) -> Tensor:
    """Lay tokens (B, grid^2, p^2 C), channel last inside a patch, out as (B, C, H, W)."""
    side = {"h": grid, "p": patch_size, "q": patch_size}
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", **side)
