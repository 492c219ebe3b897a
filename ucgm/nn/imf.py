"""iMF and pMF: a transformer whose conditions are tokens, with two heads (arXiv:2512.02012).

    tokens = [label | 1 - 1/guidance | low | high | h = t - s | patches]
    u = head_u(blocks_u(shared(tokens))),  v = head_v(blocks_v(shared(tokens)))

Each condition is one embedding, added to a few learned tokens. t itself is no input: h alone is.
No block is modulated; a gate of each channel starts at 0. The network is a flow map: u is the
average velocity from t to s, v the velocity at t. iMF turns every token by its place in the
sequence; pMF turns patches in two dimensions, adds learned positions to all tokens, sees pixels
through a bottleneck, and says the data (convention "clean").
"""

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ucgm.nn.embedded import EmbeddedNetwork
from ucgm.nn.embeddings import PatchEmbedder, Rotary, ScalarEmbedder, unpatchify
from ucgm.nn.layers import FinalLayer, PlainBlock


class TokenNetwork(EmbeddedNetwork):
    """A network that is told its conditions as tokens before those of the patches."""

    _no_split_modules = ["PlainBlock", "DiTBlock"]
    _repeated_blocks = ["PlainBlock", "DiTBlock"]
    _skip_layerwise_casting_patterns = ["pos_embed", "norm", "embedder", "tokens"]

    def _tokens(self, width: int, **counts: int) -> int:
        """Create the learned tokens of each condition; returns how many there are of all."""
        made = {name: nn.Parameter(torch.zeros(count, width)) for name, count in counts.items()}
        self.tokens = nn.ParameterDict(made)
        return sum(counts.values())

    def sequence(self, patches: Tensor, **conditions: Tensor | None) -> Tensor:
        """The tokens (B, M + N, D) of conditions (B, D) and `patches` (B, N, D)."""
        fronts = [
            embedding.unsqueeze(1) + self.tokens[name]
            for name, embedding in conditions.items()
            if embedding is not None
        ]
        return torch.cat([front.to(patches.dtype) for front in fronts] + [patches], dim=1)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw new weights: as iMF, normal of deviation 1 over the root of the inputs.

        Linear layers inside of blocks have 0.32 of it; gates and heads are zero.
        """
        super().initialize_weights()
        for name, weight in self.named_parameters():
            if name.startswith("tokens."):
                nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
            elif "embedder." in name and weight.ndim == 2 and not name.startswith("h_"):
                nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
            elif "blocks." in name and weight.ndim == 2 and "adaLN" not in name:
                nn.init.normal_(weight, std=0.32 * weight.shape[-1] ** -0.5)


class MiT(TokenNetwork):
    """iMF's transformer, `network(x_t, t, y, s) -> F`; for its arguments see `Network`."""

    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        velocity_blocks: int = 8,
        class_tokens: int = 8,
        guidance_tokens: int = 4,
        interval_tokens: int = 2,
        time_tokens: int = 4,
        bottleneck: int | None = None,
        rope: str = "line",
        learned_positions: bool = False,
        second_time: bool = True,
        guidance_input: bool = True,
        guidance_interval: bool = True,
        time_scale: float = 1.0,
        time_max_period: float = 10000.0,
        noise_scale: float = 1.0,
        convention: str = "ucgm",
    ) -> None:
        super().__init__()
        if not (second_time and guidance_input and guidance_interval):
            raise ValueError("a MiT has second_time, guidance_input and guidance_interval: true")
        if not 1 <= velocity_blocks <= depth:
            raise ValueError(f"velocity_blocks {velocity_blocks} must lie in 1 to depth {depth}")
        self._embed_patches(hidden_size, patch_size)
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, patch_size, bottleneck, bias=True)
        counts = dict(omega=guidance_tokens, t_min=interval_tokens, t_max=interval_tokens)
        counts |= dict(time=time_tokens) | (dict(label=class_tokens) if num_classes else {})
        length = self._tokens(hidden_size, **counts)
        self.h_embedder, self.omega_embedder, self.t_min_embedder, self.t_max_embedder = (
            ScalarEmbedder(hidden_size, time_scale, time_max_period) for _ in range(4)
        )
        positions = torch.zeros(1, length + self.grid**2, hidden_size)
        self.pos_embed = nn.Parameter(positions) if learned_positions else None
        self.rotary = Rotary(hidden_size // num_heads, self.grid, rope, unturned=length)
        self.shared = depth - velocity_blocks
        self.blocks, self.v_blocks = (
            nn.ModuleList(PlainBlock(hidden_size, num_heads, mlp_ratio, True) for _ in range(n))
            for n in (depth, velocity_blocks)
        )
        self.final_layer, self.velocity_layer = (
            FinalLayer(hidden_size, patch_size**2 * in_channels, "rms", True, modulated=False)
            for _ in range(2)
        )
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As of every network of tokens; learned positions are small (0.02)."""
        super().initialize_weights()
        for weight in (p for p in self.h_embedder.parameters() if p.ndim == 2):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed, std=0.02)

    def raw(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        guidance: Tensor | None = None,
        heads: str = "map",
    ) -> Any:
        """What the heads say, (B, C, H, W): that of u ("map"), of v ("velocity"), or both."""
        scale, low, high = self.guidance_numbers(t, guidance)
        tokens = self.sequence(
            self.x_embedder(x),
            label=None if self.y_embedder is None else self.y_embedder(self.require_labels(y)),
            omega=self.omega_embedder(1 - 1 / scale),
            t_min=self.t_min_embedder(low),
            t_max=self.t_max_embedder(high),
            time=self.h_embedder(torch.zeros_like(t) if h is None else h),
        )
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        table = self.rotary.of_pass()
        tokens = self.run(self.blocks[: self.shared], tokens, table)
        branches = {
            "map": (self.blocks[self.shared :], self.final_layer),
            "velocity": (self.v_blocks, self.velocity_layer),
        }
        out = []
        for blocks, layer in branches.values() if heads == "both" else [branches[heads]]:
            patches = self.run(blocks, tokens, table)[:, -(self.grid**2) :]
            out.append(unpatchify(layer(patches, None), self.patch_size, self.grid))
        return tuple(out) if heads == "both" else out[0]

    def native(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        omega: Tensor | None = None,
        t_min: Tensor | None = None,
        t_max: Tensor | None = None,
        *,
        r: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Both velocities of the public network, `out` = u and `out_v` = v, (B, C, H, W).

        `x` (B, C, H, W) with its own scale of noise, times t, h = t - r or r, the guidance scale
        omega and its interval t_min, t_max: (B,) each.
        """
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        numbers = ((omega, one), (t_min, zero), (t_max, one))
        guidance = torch.stack([off if v is None else v for v, off in numbers], dim=1)
        gap = h if h is not None else self.gap(t, h, r)
        parts = self.raw(x, t, y, gap, guidance, heads="both")
        n = self.noise_scale
        u, v = (n * self.field(part, x / n, t) for part in parts)
        return {"out": u, "out_v": v}
