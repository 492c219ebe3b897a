"""One diffusion transformer that is DiT, SiT, REPA, LightningDiT, TiT and JiT by its switches.

    c = embed_t(t) + embed_y(y) [+ embed_h(t - s)] [+ embed_g(1 - 1/guidance)]
        [+ embed_low(low) + embed_high(high)]
    F = unpatchify(head(blocks(patchify(x_t) + positions, c), c))

With `decoupled_depth` the later blocks and the head have c of s in place of that of t, and h is no
input (arXiv:2510.24474). With `velocity_blocks` n the last n blocks and the head exist twice, as
`v_blocks` and `velocity_layer`: v runs beside F from the blocks before them (arXiv:2512.02012).
With `exit_layer` n the first n blocks end in a head of their own, `exit_head`, whose F is worse and
is had on the way to F: what internal guidance needs (arXiv:2512.24176). With `context_tokens` n,
n tokens of the label, learned positions + embed_y(y), stand before the patches from block
`context_start` on, and no rotary angle turns them (arXiv:2511.13720). With `feature_token` the
class token of the encoder, which is noised as its patches are, stands before these (RiT,
arXiv:2605.21981): native alone knows it.

Sources: DiT arXiv:2212.09748, SiT arXiv:2401.08740, REPA arXiv:2410.06940, LightningDiT
arXiv:2501.01423, TiT arXiv:2505.07447 (UCGM), JiT arXiv:2511.13720.

| family            | norm, affine | mlp    | qk_norm | rope | shift |
|-------------------|--------------|--------|---------|------|-------|
| DiT, SiT, REPA    | layer, no    | gelu   | no      | no   | yes   |
| LightningDiT-XL/1 | rms, yes     | swiglu | no      | yes  | yes   |
| TiT               | rms, no      | swiglu | yes     | yes  | yes   |
| JiT               | rms, yes     | swiglu | yes     | yes  | yes   |

JiT also has a bottleneck in the embedding of patches and 32 context tokens; it says the data,
convention "jit".

The embedders of h = t - s, of the guidance and of its interval have zero output layers at the
start: weights trained without give, bit for bit, the same output in a network with these inputs.
"""

from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ucgm.nn.embedded import EmbeddedNetwork
from ucgm.nn.embeddings import PatchEmbedder, Rotary, sincos_positions, unpatchify
from ucgm.nn.layers import Attention, Block, FinalLayer, make_mlp, make_modulation, make_norm


class DiTBlock(Block):
    """Attention and MLP as the settings of `DiT` say."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, norm, affine = config.hidden_size, config.norm, config.norm_affine
        qk_affine = affine if config.qk_norm_affine is None else config.qk_norm_affine
        self.norm1 = make_norm(norm, width, affine)
        self.attn = Attention(width, config.num_heads, norm if config.qk_norm else None, qk_affine)
        self.norm2 = make_norm(norm, width, affine)
        self.mlp = make_mlp(config.mlp, width, config.mlp_ratio)
        self.adaLN_modulation = make_modulation(width, 6 if config.shift else 4)


class DiT(EmbeddedNetwork):
    """Diffusion transformer, `network(x_t, t, y, s=None) -> F`; for its arguments see `Network`."""

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
        bottleneck: int | None = None,
        context_tokens: int = 0,
        context_start: int = 0,
        feature_token: bool = False,
        learn_sigma: bool = False,
        velocity_blocks: int = 0,
        exit_layer: int | None = None,
        decoupled_depth: int | None = None,
        second_time: bool = False,
        guidance_input: bool = False,
        guidance_interval: bool = False,
        guidance_output: bool = False,
        time_scale: float = 1.0,
        time_max_period: float = 10000.0,
        fourier_time: bool = False,
        noise_scale: float = 1.0,
        convention: str = "ucgm",
    ) -> None:
        super().__init__()
        self._check_parts()
        self._embed(hidden_size, patch_size)
        self.drops_variance = learn_sigma and convention != "ddpm"
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, patch_size, bottleneck)
        positions = torch.zeros(1, self.grid**2 + feature_token, hidden_size)
        self.register_buffer("pos_embed", positions if sincos else None)
        head, front = hidden_size // num_heads, context_tokens + feature_token
        self.rotary = Rotary(head, self.grid, unturned=front) if rope else None
        self.cls_projectors = nn.Linear(in_channels, hidden_size) if feature_token else None
        context = torch.zeros(1, context_tokens, hidden_size)
        self.in_context_posemb = nn.Parameter(context) if context_tokens else None
        self.blocks = nn.ModuleList(DiTBlock(self.config) for _ in range(depth))
        out = patch_size**2 * in_channels
        self.final_layer = FinalLayer(hidden_size, out * (1 + learn_sigma), norm, norm_affine)
        if feature_token:
            self.final_layer.linear_cls = nn.Linear(hidden_size, in_channels)
        self.exit_layer, self.shared = exit_layer, depth - velocity_blocks
        self.early = decoupled_depth or self.shared
        self.context_start = context_start if context_tokens else None
        self.v_blocks = nn.ModuleList(DiTBlock(self.config) for _ in range(velocity_blocks))
        for name, wanted in (("velocity_layer", velocity_blocks), ("exit_head", exit_layer)):
            if wanted:
                setattr(self, name, FinalLayer(hidden_size, out, norm, norm_affine))
        self.initialize_weights()

    def _check_parts(self) -> None:
        """Refuse heads and late blocks where there are no blocks for them."""
        config: Any = self.config
        depth, leave, late = config.depth, config.exit_layer, config.decoupled_depth
        if not 0 <= config.velocity_blocks <= depth:
            raise ValueError(
                f"velocity_blocks {config.velocity_blocks} must lie in 0 to depth {depth}"
            )
        if leave is not None and config.velocity_blocks:
            raise ValueError("a DiT has velocity_blocks or an exit_layer, not both")
        if leave is not None and not 1 <= leave < depth:
            raise ValueError(f"exit_layer {leave} must lie in 1 to {depth - 1}, below depth")
        shared = depth - config.velocity_blocks
        if config.context_tokens and not (
            config.num_classes and 0 <= config.context_start < shared
        ):
            raise ValueError(f"context_tokens need classes, and context_start in 0 to {shared - 1}")
        if late is not None and not config.second_time:
            raise ValueError("decoupled_depth needs second_time=True")
        if late is not None and not 1 <= late <= shared:
            raise ValueError(f"decoupled_depth {late} must lie in 1 to {shared}, the shared blocks")

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw new weights: zero modulation and head, so that every block is the identity."""
        super().initialize_weights()
        if self.in_context_posemb is not None:
            nn.init.normal_(self.in_context_posemb, std=0.02)
        if self.pos_embed is not None:
            self.pos_embed[:, -(self.grid**2) :] = sincos_positions(
                self.pos_embed.shape[-1], self.grid
            )

    def context(self, y: Tensor | None) -> Tensor:
        """The tokens (B, context_tokens, D) of the labels `y` (B,)."""
        assert self.in_context_posemb is not None
        assert self.y_embedder is not None
        return self.y_embedder(self.require_labels(y)).unsqueeze(1) + self.in_context_posemb

    def embed_tokens(self, x: Tensor, z_cls: Tensor | None) -> Tensor:
        """Tokens (B, N, D) of `x` (B, C, H, W), behind that of `z_cls` (B, C) if there is one."""
        tokens = self.x_embedder(x)
        if self.cls_projectors is not None:
            if z_cls is None:
                raise ValueError(
                    "this network denoises the encoder's class token beside the patches: give "
                    "z_cls (B, C) to network.native; no sampler and no training here has one"
                )
            tokens = torch.cat((self.cls_projectors(z_cls).unsqueeze(1), tokens), dim=1)
        if self.pos_embed is None:
            return tokens
        return (tokens + self.pos_embed).to(tokens.dtype)

    def native(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        guidance: Tensor | None = None,
        heads: str = "map",
        *,
        r: Tensor | None = None,
        z_cls: Tensor | None = None,
    ) -> Any:
        """Public forward pass: (B, C, H, W), or 2 C channels for "ddpm" with learn_sigma.

        "velocity" or "exit" is the second head alone, (B, C, H, W), "both" the pair, see `Network`.
        `r` as of every embedded network. With feature_token `z_cls` (B, C) is needed, and the
        result is a dictionary of out and out_cls (B, C).
        """
        h = self.gap(t, h, r)
        c = late = self.condition(t, y, h, guidance)[0].unsqueeze(1)
        if self.decoupled and h is not None:
            late = self.condition(h, y, None, guidance)[0].unsqueeze(1)
        tokens = self.embed_tokens(x, z_cls)
        blocks, leave = list(self.blocks), self.exit_layer
        out, second, done = [], None, 0

        def image(layer: nn.Module, tokens: Tensor, c: Tensor) -> Tensor:
            return unpatchify(layer(tokens[:, -(self.grid**2) :], c), self.patch_size, self.grid)

        def stack(blocks: Any, tokens: Tensor, c: Tensor) -> Tensor:
            rope = None if self.rotary is None else self.rotary.table[-tokens.shape[1] :]
            return self.run(blocks, tokens, c, rope)

        def through(tokens: Tensor, start: int, end: int) -> Tensor:
            """Blocks `start` to `end`, those before `early` under c and the others under late."""
            cuts = {cut for cut in (self.context_start, self.early) if cut and start < cut < end}
            for first, last in pairwise(sorted({start, end} | cuts)):
                if first == self.context_start:
                    tokens = torch.cat((self.context(y).to(tokens.dtype), tokens), dim=1)
                tokens = stack(blocks[first:last], tokens, c if first < self.early else late)
            return tokens

        if leave is not None and heads != "map":
            tokens, done = through(tokens, 0, leave), leave
            second = image(self.exit_head, tokens, c if leave <= self.early else late)
            if heads == "exit":
                return second
        tokens = through(tokens, done, self.shared)
        if heads != "velocity":
            tokens_end = stack(blocks[self.shared :], tokens, late)
            end = image(self.final_layer, tokens_end, late)
            if self.cls_projectors is not None:
                first = tokens_end[:, -(self.grid**2) - 1, None]
                one = self.final_layer(first, late, self.final_layer.linear_cls)
                return {"out": end, "out_cls": one.squeeze(1)}
            out.append(end[:, : self.shape[0]] if self.drops_variance else end)
        if second is None and heads != "map":
            second = image(self.velocity_layer, stack(self.v_blocks, tokens, late), late)
        out += [] if second is None else [second]
        return out[0] if len(out) == 1 else tuple(out)
