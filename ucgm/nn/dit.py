"""One diffusion transformer that is DiT, SiT, REPA's SiT, LightningDiT and TiT by its switches.

    c = embed_t(t) + embed_y(y) [+ embed_h(t - s)] [+ embed_g(1 - 1/guidance)]
    F = unpatchify(head(blocks(patchify(x_t) + positions, c), c))

Sources: DiT arXiv:2212.09748, SiT arXiv:2401.08740, REPA arXiv:2410.06940, LightningDiT
arXiv:2501.01423, TiT arXiv:2505.07447 (UCGM).

| family            | norm, affine | mlp    | qk_norm | rope | shift |
|-------------------|--------------|--------|---------|------|-------|
| DiT, SiT, REPA    | layer, no    | gelu   | no      | no   | yes   |
| LightningDiT-XL/1 | rms, yes     | swiglu | no      | yes  | yes   |
| TiT               | rms, no      | swiglu | yes     | yes  | yes   |

The embedders of h = t - s and of the guidance have zero output layers at the start: weights
trained with one time give, bit for bit, the same output in a network with both inputs.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ucgm.nn.embeddings import PatchEmbedder, Rotary, sincos_positions, unpatchify
from ucgm.nn.layers import Attention, make_mlp, make_norm, modulate
from ucgm.nn.network import Network, initialize


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated by the conditioning vector."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        norm: str,
        norm_affine: bool,
        mlp: str,
        qk_norm: bool,
        qk_norm_affine: bool,
        shift: bool,
    ) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = make_norm(norm, width, norm_affine)
        self.attn = Attention(width, num_heads, norm if qk_norm else None, qk_norm_affine)
        self.norm2 = make_norm(norm, width, norm_affine)
        self.mlp = make_mlp(mlp, width, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(width, (6 if shift else 4) * width)
        )

    def forward(self, x: Tensor, c: Tensor, rope: Tensor | None = None) -> Tensor:
        """Transform tokens `x` (B, N, D) under conditioning `c` (B, D)."""
        parts = self.adaLN_modulation(c).unsqueeze(1).chunk(6 if self.shift else 4, dim=-1)
        if self.shift:
            b1, a1, g1, b2, a2, g2 = parts
        else:
            (a1, g1, a2, g2), b1, b2 = parts, None, None
        x = torch.addcmul(x, g1, self.attn(modulate(self.norm1(x), b1, a1), rope))
        return torch.addcmul(x, g2, self.mlp(modulate(self.norm2(x), b2, a2)))


class FinalLayer(nn.Module):
    """Modulated norm and projection of a token to the pixels of its patch."""

    def __init__(self, width: int, out_features: int, norm: str, norm_affine: bool) -> None:
        super().__init__()
        self.norm_final = make_norm(norm, width, norm_affine)
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map `x` (B, N, D), `c` (B, D) to (B, N, out_features)."""
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(Network):
    """Diffusion transformer, `network(x_t, t, y, s=None) -> F`. Its settings:

    - `input_size`: height and width of the data.
    - `patch_size`: side of a patch; divides input_size.
    - `in_channels`: channels of the data.
    - `hidden_size`: width of a token.
    - `depth`: number of blocks.
    - `num_heads`: attention heads; divides hidden_size.
    - `mlp_ratio`: hidden width of the MLP over hidden_size (before the 2/3 of SwiGLU).
    - `num_classes`: number of classes; label num_classes is the null class; 0 = unconditional.
    - `norm`: "rms" or "layer".
    - `norm_affine`: whether norms have a learned scale.
    - `mlp`: "swiglu" or "gelu".
    - `qk_norm`: normalise queries and keys.
    - `qk_norm_affine`: whether QK-norms have a learned scale; None = as norm_affine.
    - `rope`: rotary positions in attention.
    - `sincos`: add fixed sin-cos positions to the tokens.
    - `shift`: modulate with a shift beside the scale.
    - `learn_sigma`: the head has twice the channels; the second half is not part of F.
    - `second_time`: accept `s`, embedded from t - s.
    - `guidance_input`: accept `guidance`, embedded from 1 - 1/guidance.
    - `time_scale`: factor on the native time before the sinusoids.
    - `time_max_period`: longest period of the sinusoids, over 2 pi.
    - `convention`: time and sign of the weights, see `ucgm.nn.network`.
    """

    _no_split_modules = ["DiTBlock"]
    _repeated_blocks = ["DiTBlock"]
    _skip_layerwise_casting_patterns = ["pos_embed", "norm", "embedder"]

    pos_embed: Tensor | None

    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        norm: str = "rms",
        norm_affine: bool = False,
        mlp: str = "swiglu",
        qk_norm: bool = True,
        qk_norm_affine: bool | None = None,
        rope: bool = True,
        sincos: bool = True,
        shift: bool = True,
        learn_sigma: bool = False,
        second_time: bool = False,
        guidance_input: bool = False,
        time_scale: float = 1.0,
        time_max_period: float = 10000.0,
        convention: str = "ucgm",
    ) -> None:
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide input_size {input_size}")
        self._setup((in_channels, input_size, input_size), num_classes, convention, second_time)
        self._embed(hidden_size, time_scale, time_max_period, guidance_input)
        self.learn_sigma = learn_sigma
        self.patch_size, self.grid = patch_size, input_size // patch_size
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, patch_size)
        positions = torch.zeros(1, self.grid**2, hidden_size) if sincos else None
        self.register_buffer("pos_embed", positions)
        self.rotary = Rotary(hidden_size // num_heads, self.grid) if rope else None
        affine = norm_affine if qk_norm_affine is None else qk_norm_affine
        switches = (mlp_ratio, norm, norm_affine, mlp, qk_norm, affine, shift)
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, *switches) for _ in range(depth)
        )
        out_features = patch_size**2 * in_channels * (2 if learn_sigma else 1)
        self.final_layer = FinalLayer(hidden_size, out_features, norm, norm_affine)
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw new weights: zero modulation and head, so that every block is the identity."""
        blocks = [cast(DiTBlock, block) for block in self.blocks]
        modulations = [block.adaLN_modulation for block in blocks]
        initialize(
            self, zero=[*modulations, self.final_layer.adaLN_modulation, self.final_layer.linear]
        )
        if self.pos_embed is not None:
            self.pos_embed.copy_(sincos_positions(self.pos_embed.shape[-1], self.grid))

    def native(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Public forward pass: (B, C, H, W), or 2 C channels for "ddpm" with learn_sigma."""
        c = self.embed_scalars(t, h, guidance)
        if self.y_embedder is not None:
            c = c + self.y_embedder(self.require_labels(y))
        tokens = self.x_embedder(x)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        tokens = self.run(
            self.blocks, tokens, c, None if self.rotary is None else self.rotary.table
        )
        out = unpatchify(self.final_layer(tokens, c), self.patch_size, self.grid)
        if self.learn_sigma and not self.orientation.keeps_variance:
            return out[:, : self.shape[0]]
        return out
