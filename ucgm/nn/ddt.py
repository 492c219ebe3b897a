"""DDT, a transformer with a condition encoder and a velocity decoder (arXiv:2504.05741).

    s = silu(embed_t(t) + encoder(patches_s(x_t); silu(embed_t(t) + embed_y(y))))     (B, N, D)
    F = unpatchify(head(decoder(patches_x(x_t); s), s))

Both halves are stacks of the same block; in the decoder every token has its own modulation s_n.
Blocks have RMSNorm with a learned scale, QK-norm, rotary positions spread over [0, 16], SwiGLU.
A patch is stored channel first (C, p, p), in and out; DiT's head is channel last.
The published weights have time 0 = noise, the velocity data - noise, and time sinusoids with a
longest period of 10 instead of 10000: set convention="reversed", time_max_period=10.
"""

from collections import OrderedDict

import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ucgm.nn.embedded import EmbeddedNetwork
from ucgm.nn.embeddings import Rotary
from ucgm.nn.layers import Attention, Block, FinalLayer, SplitSwiGLU, make_modulation, make_norm


class DDTBlock(Block):
    """Attention and SwiGLU, modulated per image (encoder) or per token (decoder)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = make_norm("rms", width, affine=True)
        self.attn = Attention(width, num_heads, "rms", affine=True, bias=False)
        self.norm2 = make_norm("rms", width, affine=True)
        self.mlp = SplitSwiGLU(width, int(2 * int(width * mlp_ratio) / 3))
        self.adaLN_modulation = make_modulation(width, 6, silu=False)


class DDT(EmbeddedNetwork):
    """Decoupled transformer, `network(x_t, t, y, s=None) -> F`; for its arguments see `Network`."""

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
        if not 0 < encoder_depth < depth:
            raise ValueError(f"encoder_depth {encoder_depth} must lie between 0 and depth {depth}")
        self._embed(hidden_size, patch_size)
        self.encoder_depth = encoder_depth
        features = in_channels * patch_size**2
        # Sequential for the published names x_embedder.proj and s_embedder.proj.
        self.x_embedder = nn.Sequential(OrderedDict(proj=nn.Linear(features, hidden_size)))
        self.s_embedder = nn.Sequential(OrderedDict(proj=nn.Linear(features, hidden_size)))
        self.rotary = Rotary(hidden_size // num_heads, self.grid, layout="pairs", extent=16.0)
        self.blocks = nn.ModuleList(
            DDTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, features, "layer", False, silu=False)
        self.initialize_weights()

    def backbone(self, x: Tensor, c: Tensor, time: Tensor) -> Tensor:
        """Public forward pass, (B, C, H, W)."""
        patches = F.pixel_unshuffle(x, self.patch_size).flatten(2).transpose(1, 2)
        time, c = time.unsqueeze(1), c.unsqueeze(1)
        blocks = list(self.blocks)
        encoder, decoder = blocks[: self.encoder_depth], blocks[self.encoder_depth :]
        table = self.rotary.of_pass()
        s = self.run(encoder, self.s_embedder(patches), F.silu(c), table)
        s = F.silu(time + s)
        tokens = self.run(decoder, self.x_embedder(patches), s, table)
        out = self.final_layer(tokens, s).transpose(1, 2)
        return F.pixel_shuffle(out.unflatten(2, (self.grid, self.grid)), self.patch_size)
