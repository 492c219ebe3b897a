"""DiT-DH, a transformer with a wide and shallow head (RAE, arXiv:2510.11690).

    s = embed(x_t) + positions through the encoder, under c = silu(embed_t(t) + embed_y(y))
    s = W silu(embed_t(t) + s)                                    (B, N, D), W to the head's width
    F = unpatchify(final(head(embed_wide(x_t); s), s))

Latents of a representation autoencoder have 768 channels: a token cannot be narrower than them
without losing noise, and only the head has to be wide. As in DDT (arXiv:2504.05741) each of its
tokens has its own modulation; blocks are LightningDiT's. The published weights have our time and
sign, and time features [sin, cos](2 pi t w) with w stored; of MeanFlow in such latents
(arXiv:2511.13019), those of t - s too.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ucgm.nn.dit import DiTBlock
from ucgm.nn.embedded import EmbeddedNetwork
from ucgm.nn.embeddings import PatchEmbedder, Rotary, sincos_positions, unpatchify
from ucgm.nn.layers import FinalLayer


class DiTDH(EmbeddedNetwork):
    """DiT-DH, `network(x_t, t, y, s=None) -> F`; for its arguments see `Network`."""

    _no_split_modules = ["DiTBlock"]
    _repeated_blocks = ["DiTBlock"]
    _skip_layerwise_casting_patterns = ["pos_embed", "norm", "embedder"]

    pos_embed: Tensor

    @register_to_config
    def __init__(
        self,
        input_size: int = 16,
        patch_size: int = 1,
        in_channels: int = 768,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        head_width: int = 2048,
        head_depth: int = 2,
        head_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        qk_norm: bool = False,
        second_time: bool = False,
        guidance_input: bool = False,
        time_scale: float = 1.0,
        time_max_period: float = 10000.0,
        fourier_time: bool = True,
        fourier_gap: bool = False,
        convention: str = "ucgm",
    ) -> None:
        super().__init__()
        self._embed(hidden_size, patch_size)
        self.register_buffer("pos_embed", torch.zeros(1, self.grid**2, hidden_size))
        self.s_embedder = PatchEmbedder(in_channels, hidden_size, patch_size)
        self.x_embedder = PatchEmbedder(in_channels, head_width, patch_size)
        same = head_width == hidden_size
        self.s_projector = nn.Identity() if same else nn.Linear(hidden_size, head_width)
        self.depth = depth
        switches = dict(norm="rms", norm_affine=True, qk_norm=qk_norm, qk_norm_affine=True)
        switches |= dict(mlp="swiglu", mlp_ratio=mlp_ratio, shift=True)
        encoder = SimpleNamespace(hidden_size=hidden_size, num_heads=num_heads, **switches)
        head = SimpleNamespace(hidden_size=head_width, num_heads=head_heads, **switches)
        kinds = [encoder] * depth + [head] * head_depth
        self.blocks = nn.ModuleList(DiTBlock(kind) for kind in kinds)
        self.rotary = Rotary(hidden_size // num_heads, self.grid)
        self.head_rotary = Rotary(head_width // head_heads, self.grid)
        self.final_layer = FinalLayer(head_width, patch_size**2 * in_channels, "rms", True)
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw new weights: zero modulation and head, so that every block is the identity."""
        super().initialize_weights()
        self.pos_embed.copy_(sincos_positions(self.pos_embed.shape[-1], self.grid))

    def backbone(self, x: Tensor, c: Tensor, time: Tensor) -> Tensor:
        """Public forward pass, (B, C, H, W)."""
        blocks, table = list(self.blocks), self.rotary.of_pass()
        s = self.s_embedder(x)
        s = (s + self.pos_embed).to(s.dtype)
        s = self.run(blocks[: self.depth], s, F.silu(c).unsqueeze(1), table)
        s = self.s_projector(F.silu(time.unsqueeze(1) + s))
        tokens = self.run(blocks[self.depth :], self.x_embedder(x), s, self.head_rotary.of_pass())
        return unpatchify(self.final_layer(tokens, s), self.patch_size, self.grid)
