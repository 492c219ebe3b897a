"""Settings of the networks whose conditions are tokens: iMF, pMF and RAEv2."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ucgm.nn.configs import Convention, Depth, TransformerConfig, Width
from ucgm.nn.imf import MiT
from ucgm.nn.network import Network
from ucgm.nn.raev2 import RAEv2
from ucgm.runtime.values import Positive, Range

Tokens = Annotated[int, Range(1, 1024)]

MIT_SIZES = {
    "imf": {"N": (48, 4), "B": (768, 12), "M": (768, 24), "L": (1024, 32), "XL": (1024, 48)},
    "pmf": {"N": (48, 4), "B": (768, 16), "L": (1024, 32), "H": (1280, 48)},
}
"""Width and depth by family (arXiv:2512.02012 and the code of both)."""


@dataclass(frozen=True)
class MiTConfig(TransformerConfig):
    """iMF's flow map of latents, or pMF's of pixels (arXiv:2512.02012)."""

    family: Literal["imf", "pmf"] = "imf"
    """Sizes, and what the settings left at null are."""
    velocity_blocks: Depth | None = None
    """Last blocks that exist twice, for u and for v; null: 8, or half of a shallower network."""
    class_tokens: Tokens = 8
    """Tokens of the label."""
    guidance_tokens: Tokens = 4
    """Tokens of the guidance scale."""
    interval_tokens: Tokens = 2
    """Tokens of each end of the interval of the guidance."""
    time_tokens: Tokens = 4
    """Tokens of t - s."""
    bottleneck: Width | None = None
    """Channels between pixels and token; null: none; of "pmf" 128, and 256 from width 1280 on."""
    rope: Literal["line", "blocks"] | None = None
    """Angles: of the place in the sequence ("imf"), or of row and column ("pmf")."""
    learned_positions: bool | None = None
    """Add learned positions to all tokens; null: "pmf" does."""
    noise_scale: Positive = 1.0
    """Standard deviation of the noise beside data in [-1, 1]: the path LoudLinear from 1 on."""
    second_time: bool = True
    """The network is a flow map: no other value."""
    guidance_input: bool = True
    """The guidance scale is an input: no other value."""
    guidance_interval: bool = True
    """So is its interval."""
    convention: Convention | None = None
    """What the output is; null: F of "imf", the data ("clean") of "pmf"."""

    def defaults(self) -> tuple[Callable[..., Network], dict[str, Any]]:
        """Return MiT, and the numbers of the size and the family."""
        name, _, patch = (self.size or "").partition("/")
        sizes, numbers = MIT_SIZES[self.family], {}
        if self.size is not None:
            if name not in sizes or not patch.isdigit() or int(patch) == 0:
                known = ", ".join(sizes)
                raise ValueError(f'size must be one of {known} and a patch, as "B/2": {self.size}')
            numbers = dict(hidden_size=sizes[name][0], depth=sizes[name][1], patch_size=int(patch))
        width, depth = (getattr(self, k) or numbers.get(k, 0) for k in ("hidden_size", "depth"))
        numbers["num_heads"] = {48: 4, 768: 12}.get(width, 16)
        numbers["velocity_blocks"] = 8 if depth > 8 else max(depth // 2, 1)
        if self.family == "pmf":
            numbers |= dict(bottleneck=128 if width < 1280 else 256, rope="blocks")
            numbers |= dict(learned_positions=True, convention="clean")
        return MiT, numbers


@dataclass(frozen=True)
class RAEv2Config(TransformerConfig):
    """RAEv2's transformer for latents of a representation autoencoder (arXiv:2605.18324)."""

    head_width: Width | None = None
    """Width of a token in the head; null: no head."""
    head_depth: Depth = 2
    """Blocks of the head; those of the encoder are depth."""
    head_heads: Width = 16
    """Attention heads there."""
    class_tokens: Tokens = 8
    """Tokens of the label."""
    guidance_tokens: Tokens = 4
    """Tokens of the guidance scale, with guidance_input."""
    time_tokens: Tokens = 4
    """Tokens of the time."""
    exit_layer: Depth | None = None
    """Blocks after which an exit head predicts too (internal guidance); 8 as published."""
    feature_layer: Depth = 8
    """Blocks after which tokens are projected to features."""
    features: Annotated[int, Range(0, 65_536)] = 0
    """Channels of these features; 0: no projection."""
    convention: Convention = "clean"
    """What the output is: the data, turned into F."""

    def defaults(self) -> tuple[Callable[..., Network], dict[str, Any]]:
        """Return RAEv2; a null head is none, a size gives its encoder."""
        sizes = {"N": (48, 2, 4), "k7": (1440, 28, 20)}
        options: dict[str, Any] = {"head_width": None}
        name, _, patch = (self.size or "").partition("/")
        if self.size is not None:
            if name not in sizes or not patch.isdigit() or int(patch) == 0:
                raise ValueError(f'size must be N or k7 and a patch, as "k7/1": {self.size}')
            width, depth, heads = sizes[name]
            options |= dict(hidden_size=width, depth=depth, num_heads=heads, patch_size=int(patch))
        return RAEv2, options
