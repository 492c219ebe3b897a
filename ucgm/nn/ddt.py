"""DDT, a transformer with a condition encoder and a velocity decoder (arXiv:2504.05741).

    s = silu(embed_t(t) + encoder(patches_s(x_t); silu(embed_t(t) + embed_y(y))))     (B, N, D)
    F = unpatchify(head(decoder(patches_x(x_t); s), s))

Both halves are stacks of the same block; in the decoder every token has its own modulation s_n.
Blocks have RMSNorm with a learned scale, QK-norm, rotary positions spread over [0, 16], SwiGLU.
A patch is stored channel first (C, p, p), in and out; DiT's head is channel last.
The published weights have time 0 = noise, the velocity data - noise, and time sinusoids with a
longest period of 10 instead of 10000: set convention="reversed", time_max_period=10.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ucgm.nn.embeddings import Rotary
from ucgm.nn.layers import Attention, SplitSwiGLU, make_norm, modulate
from ucgm.nn.network import Network, initialize


class PatchLinear(nn.Module):
    """Linear map of flattened patches; the attribute gives the parameters their public name."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, width)

    def forward(self, patches: Tensor) -> Tensor:
        """Map (B, N, C p^2) to (B, N, width)."""
        return self.proj(patches)


class DDTBlock(nn.Module):
    """Attention and SwiGLU, modulated per image (encoder) or per token (decoder)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = make_norm("rms", width, affine=True)
        self.attn = Attention(width, num_heads, "rms", affine=True, bias=False)
        self.norm2 = make_norm("rms", width, affine=True)
        self.mlp = SplitSwiGLU(width, int(2 * int(width * mlp_ratio) / 3))
        self.adaLN_modulation = nn.Sequential(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, rope: Tensor) -> Tensor:
        """Transform tokens `x` (B, N, D) under `c`, (B, 1, D) or (B, N, D)."""
        b1, a1, g1, b2, a2, g2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = torch.addcmul(x, g1, self.attn(modulate(self.norm1(x), b1, a1), rope))
        return torch.addcmul(x, g2, self.mlp(modulate(self.norm2(x), b2, a2)))


class DDTHead(nn.Module):
    """Modulated LayerNorm and projection of a token to the pixels of its patch."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = make_norm("layer", width, affine=False)
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = nn.Sequential(nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map `x`, `c` (B, N, D) to (B, N, out_features)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DDT(Network):
    """Decoupled diffusion transformer, `network(x_t, t, y, s=None) -> F`. Its settings:

    - `input_size`, `patch_size`, `in_channels`, `hidden_size`, `num_heads`, `mlp_ratio`,
      `num_classes`, `second_time`, `guidance_input`, `time_scale`, `time_max_period`,
      `convention`: as in `ucgm.nn.DiT`.
    - `depth`: number of blocks, encoder and decoder together.
    - `encoder_depth`: how many of them are the encoder.
    """

    _no_split_modules = ["DDTBlock"]
    _repeated_blocks = ["DDTBlock"]
    _skip_layerwise_casting_patterns = ["norm", "embedder"]

    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        encoder_depth: int = 22,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        second_time: bool = False,
        guidance_input: bool = False,
        time_scale: float = 1.0,
        time_max_period: float = 10000.0,
        convention: str = "ucgm",
    ) -> None:
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide input_size {input_size}")
        if not 0 < encoder_depth < depth:
            raise ValueError(f"encoder_depth {encoder_depth} must lie between 0 and depth {depth}")
        self._setup((in_channels, input_size, input_size), num_classes, convention, second_time)
        self._embed(hidden_size, time_scale, time_max_period, guidance_input)
        self.encoder_depth, self.patch_size = encoder_depth, patch_size
        features = in_channels * patch_size**2
        self.x_embedder = PatchLinear(features, hidden_size)
        self.s_embedder = PatchLinear(features, hidden_size)
        grid = input_size // patch_size
        self.rotary = Rotary(hidden_size // num_heads, grid, layout="pairs", extent=16.0)
        self.blocks = nn.ModuleList(
            DDTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.final_layer = DDTHead(hidden_size, features)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Draw new weights: zero modulation and head, so that every block is the identity."""
        modulations = [cast(DDTBlock, block).adaLN_modulation for block in self.blocks]
        head = self.final_layer
        initialize(self, zero=[*modulations, head.adaLN_modulation, head.linear])

    def native(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Public forward pass, (B, C, H, W)."""
        patches = F.pixel_unshuffle(x, self.patch_size).flatten(2).transpose(1, 2)
        time = self.embed_scalars(t, h, guidance).unsqueeze(1)
        c = time
        if self.y_embedder is not None:
            c = c + self.y_embedder(self.require_labels(y)).unsqueeze(1)
        rope = self.rotary.table
        blocks = list(self.blocks)
        encoder, decoder = blocks[: self.encoder_depth], blocks[self.encoder_depth :]
        s = self.run(encoder, self.s_embedder(patches), F.silu(c), rope)
        s = F.silu(time + s)
        tokens = self.run(decoder, self.x_embedder(patches), s, rope)
        out = self.final_layer(tokens, s).transpose(1, 2)
        grid = self.rotary.grid
        return F.pixel_shuffle(out.unflatten(2, (grid, grid)), self.patch_size)
