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
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ucgm.nn.layers import (
    Attention,
    LabelEmbedder,
    PatchEmbedder,
    Rotary,
    ScalarEmbedder,
    make_mlp,
    make_norm,
    modulate,
    sincos_positions,
    unpatchify,
)


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
        shift: bool,
    ) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = make_norm(norm, width, norm_affine)
        self.attn = Attention(width, num_heads, norm if qk_norm else None, norm_affine)
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


class DiT(ModelMixin, ConfigMixin):
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
    - `norm_affine`: whether norms (and QK-norms) have a learned scale.
    - `mlp`: "swiglu" or "gelu".
    - `qk_norm`: normalise queries and keys.
    - `rope`: rotary positions in attention.
    - `sincos`: add fixed sin-cos positions to the tokens.
    - `shift`: modulate with a shift beside the scale.
    - `learn_sigma`: the head has twice the channels; the second half is dropped.
    - `second_time`: accept `s`, embedded from t - s.
    - `guidance_input`: accept `guidance`, embedded from 1 - 1/guidance.
    - `time_scale`: factor on t before the sinusoids.
    - `time_max_period`: longest period of the sinusoids, over 2 pi.
    """

    _supports_gradient_checkpointing = True
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
        rope: bool = True,
        sincos: bool = True,
        shift: bool = True,
        learn_sigma: bool = False,
        second_time: bool = False,
        guidance_input: bool = False,
        time_scale: float = 1.0,
        time_max_period: float = 10000.0,
    ) -> None:
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide input_size {input_size}")
        self.gradient_checkpointing = False
        self.input_size, self.patch_size, self.in_channels = input_size, patch_size, in_channels
        self.num_classes, self.learn_sigma = num_classes, learn_sigma
        self.grid = input_size // patch_size

        def time_embedder() -> ScalarEmbedder:
            return ScalarEmbedder(hidden_size, time_scale, time_max_period)

        self.x_embedder = PatchEmbedder(in_channels, hidden_size, patch_size)
        self.t_embedder = time_embedder()
        self.h_embedder = time_embedder() if second_time else None
        self.g_embedder = ScalarEmbedder(hidden_size, 1.0, 10000.0) if guidance_input else None
        self.y_embedder = LabelEmbedder(num_classes, hidden_size) if num_classes else None
        positions = torch.zeros(1, self.grid**2, hidden_size) if sincos else None
        self.register_buffer("pos_embed", positions)
        self.rotary = Rotary(hidden_size // num_heads, self.grid) if rope else None
        switches = (mlp_ratio, norm, norm_affine, mlp, qk_norm, shift)
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, *switches) for _ in range(depth)
        )
        out_features = patch_size**2 * in_channels * (2 if learn_sigma else 1)
        self.final_layer = FinalLayer(hidden_size, out_features, norm, norm_affine)
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Xavier-uniform layers; zero modulation, zero head, zero second-input embedders."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.pos_embed is not None:
            self.pos_embed.copy_(sincos_positions(self.pos_embed.shape[-1], self.grid))
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for embedder in (self.t_embedder, self.h_embedder, self.g_embedder):
            if embedder is not None:
                nn.init.normal_(cast(nn.Linear, embedder.mlp[0]).weight, std=0.02)
                nn.init.normal_(cast(nn.Linear, embedder.mlp[2]).weight, std=0.02)
        zeros = [self.final_layer.linear, self.final_layer.adaLN_modulation[1]]
        zeros += [cast(DiTBlock, block).adaLN_modulation[1] for block in self.blocks]
        zeros += [e.mlp[2] for e in (self.h_embedder, self.g_embedder) if e is not None]
        for layer in zeros:
            nn.init.zeros_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        s: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Predict F, (B, C, H, W).

        - `x_t`: noisy data (B, C, H, W).
        - `t`: times (B,) in [0, 1]; 0 is data, 1 is noise.
        - `y`: labels (B,) int64, num_classes = no label; ignored by an unconditional network.
        - `s`: destination times (B,) of a two-time network; None means s = t.
        - `guidance`: guidance scales (B,) >= 1; None means 1.
        """
        if x_t.shape[1:] != (self.in_channels, self.input_size, self.input_size):
            raise ValueError(
                f"the network was built for data of shape (in_channels, input_size, input_size) = "
                f"{(self.in_channels, self.input_size, self.input_size)}, "
                f"got {tuple(x_t.shape[1:])}"
            )
        c = self.condition(t, y, s, guidance)
        x = self.x_embedder(x_t)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        rope = None if self.rotary is None else self.rotary.table
        recompute = self._gradient_checkpointing_func if torch.is_grad_enabled() else None
        for block in self.blocks:
            if self.gradient_checkpointing and recompute is not None:
                x = recompute(block, x, c, rope)
            else:
                x = block(x, c, rope)
        out = unpatchify(self.final_layer(x, c), self.patch_size, self.grid)
        return out[:, : self.in_channels] if self.learn_sigma else out

    def condition(
        self, t: Tensor, y: Tensor | None, s: Tensor | None, guidance: Tensor | None
    ) -> Tensor:
        """Return the conditioning vector c, (B, hidden_size)."""
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            if y is None:
                raise ValueError(
                    f"a class-conditional network needs y; pass y = {self.num_classes} "
                    "(the null class) for no label"
                )
            c = c + self.y_embedder(y)
        if self.h_embedder is not None:
            c = c + self.h_embedder(torch.zeros_like(t) if s is None else t - s)
        elif s is not None:
            raise ValueError("this network has one time: build it with second_time=True to pass s")
        if self.g_embedder is not None:
            zeta = torch.zeros_like(t) if guidance is None else 1 - 1 / guidance
            c = c + self.g_embedder(zeta)
        elif guidance is not None:
            raise ValueError("build the network with guidance_input=True to pass guidance")
        return c
