"""RAEv2's transformers: conditions as tokens, a wide head, an early exit (arXiv:2605.18324).

    z = blocks([label | guidance | t | patches of x_t])            no modulation, no positions
    s = W silu(embed_t(t) + patches of z)                          (B, N, D), to the head's width
    x = unpatchify(final(head(embed_wide(x_t); s), s))

Without a head, x is read off z. After `exit_layer` blocks an exit head says x too: internal
guidance moves away from it. The network says the data, convention "clean". A projection of the
tokens after `feature_layer` blocks, which representation alignment trains, may be there as well.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ucgm.nn.dit import DiTBlock
from ucgm.nn.embeddings import FourierEmbedder, PatchEmbedder, Rotary, ScalarEmbedder, unpatchify
from ucgm.nn.imf import TokenNetwork
from ucgm.nn.layers import FinalLayer, PlainBlock


class RAEv2(TokenNetwork):
    """RAEv2's transformer, `network(x_t, t, y, s=None) -> F`; for its arguments see `Network`."""

    @register_to_config
    def __init__(
        self,
        input_size: int = 16,
        patch_size: int = 1,
        in_channels: int = 1024,
        hidden_size: int = 1440,
        depth: int = 28,
        num_heads: int = 20,
        head_width: int | None = 2048,
        head_depth: int = 2,
        head_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_tokens: int = 8,
        guidance_tokens: int = 4,
        time_tokens: int = 4,
        exit_layer: int | None = None,
        feature_layer: int = 8,
        features: int = 0,
        second_time: bool = False,
        guidance_input: bool = False,
        time_scale: float = 1.0,
        time_max_period: float = 10000.0,
        convention: str = "clean",
    ) -> None:
        super().__init__()
        if exit_layer is not None and not 1 <= exit_layer <= depth:
            raise ValueError(f"exit_layer {exit_layer} must lie in 1 to depth {depth}")
        self._embed_patches(hidden_size, patch_size)
        self.t_embedder = FourierEmbedder(hidden_size)
        self.omega_embedder = FourierEmbedder(hidden_size) if guidance_input else None
        times = (hidden_size, time_scale, time_max_period)
        self.h_embedder = ScalarEmbedder(*times) if second_time else None
        counts = dict(label=class_tokens) if num_classes else {}
        counts |= dict(omega=guidance_tokens) if guidance_input else {}
        length = self._tokens(hidden_size, time=time_tokens, **counts)
        self.rotary = Rotary(hidden_size // num_heads, self.grid, unturned=length)
        self.depth, wide = depth, head_width is not None
        self.blocks = nn.ModuleList(
            PlainBlock(hidden_size, num_heads, mlp_ratio, False) for _ in range(depth)
        )
        width, self.s_embedder, self.s_projector = head_width or hidden_size, None, None
        self.x_embedder = PatchEmbedder(in_channels, width, patch_size)
        if wide:
            self.s_embedder = PatchEmbedder(in_channels, hidden_size, patch_size)
            self.s_projector = nn.Linear(hidden_size, width)
            self.head_rotary = Rotary(width // head_heads, self.grid)
            kind: Any = dict(hidden_size=width, num_heads=head_heads, norm="rms", norm_affine=True)
            kind |= dict(qk_norm=True, qk_norm_affine=True, mlp="swiglu", mlp_ratio=mlp_ratio)
            kind = SimpleNamespace(**kind, shift=True)
            self.blocks.extend(DiTBlock(kind) for _ in range(head_depth))
        out = patch_size**2 * in_channels
        self.final_layer = FinalLayer(width, out, "rms", True, modulated=wide)
        self.exit_layer, self.feature_layer = exit_layer, feature_layer
        if exit_layer is not None:
            self.exit_head = FinalLayer(hidden_size, out, "rms", True, modulated=wide)
        self.repa_projector = nn.Linear(hidden_size, features) if features else None
        self.initialize_weights()

    def outputs(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        h: Tensor | None,
        guidance: Tensor | None,
        wanted: tuple[str, ...],
    ) -> dict[str, Tensor]:
        """Those `wanted` of out, out_base, (B, C, H, W), and out_repa (B, N, features).

        The inputs are those of `Network.native`.
        """
        time = self.t_embedder(t)
        if self.h_embedder is not None:
            time = time + self.h_embedder(torch.zeros_like(t) if h is None else h)
        omega = self.omega_embedder
        tokens = self.sequence(
            (self.s_embedder or self.x_embedder)(x),
            label=None if self.y_embedder is None else self.y_embedder(self.require_labels(y)),
            omega=omega and omega(self.guidance_numbers(t, guidance)[0]),
            time=time,
        )
        size, found, table = self.grid**2, {}, self.rotary.of_pass()
        for number in range(self.depth + 1):
            patches = tokens[:, -size:]
            s = F.silu(time.unsqueeze(1) + patches) if self.s_projector else patches
            if number == self.exit_layer and "out_base" in wanted:
                found["out_base"] = self.image(self.exit_head(s, s))
            if number == self.feature_layer and "out_repa" in wanted and self.repa_projector:
                found["out_repa"] = self.repa_projector(patches)
            if "out" not in wanted and number == self.exit_layer:
                return found
            if number == self.depth:
                break
            tokens = self.run(self.blocks[number : number + 1], tokens, table)
        if self.s_projector is not None:
            s, wide = self.s_projector(s), self.x_embedder(x)
            patches = self.run(self.blocks[self.depth :], wide, s, self.head_rotary.of_pass())
        return found | {"out": self.image(self.final_layer(patches, s))}

    def image(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C p^2) as (B, C, H, W)."""
        return unpatchify(tokens, self.patch_size, self.grid)

    def raw(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        guidance: Tensor | None = None,
        heads: str = "map",
    ) -> Any:
        """The data that the network says, (B, C, H, W), or its exit head ("exit"), or both."""
        names = {"map": ("out",), "exit": ("out_base",), "both": ("out", "out_base")}[heads]
        found = self.outputs(x, t, y, h, guidance, names)
        return tuple(found[name] for name in names) if heads == "both" else found[names[0]]

    def native(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        omega: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """All outputs of the public network: out, and out_base and out_repa where it has them.

        `x` (B, C, H, W), times `t`, `h` and the guidance scale `omega` (B,).
        """
        wanted = ("out", "out_repa") + ("out_base",) * self.exits
        return self.outputs(x, t, y, h, omega, wanted)
