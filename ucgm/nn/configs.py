"""Network settings as frozen dataclasses, read by the command line and stored with a run.

A size is "WIDTH/PATCH": T, S, B, L, XL, 1p0B, 1p6B (the last two of UCGM, arXiv:2505.07447) and N
(for tests) name (hidden_size, depth, num_heads); the number is the side of a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from torch import nn

from ucgm.nn.ddt import DDT
from ucgm.nn.dit import DiT
from ucgm.nn.edm2 import EDM2, MODEL_CHANNELS
from ucgm.nn.network import Network
from ucgm.nn.unet import UNet

SIZES: dict[str, tuple[int, int, int]] = {
    "N": (48, 2, 4),
    "T": (96, 4, 4),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}

FAMILIES: dict[str, dict[str, Any]] = {
    "tit": dict(norm="rms", norm_affine=False, mlp="swiglu", qk_norm=True, rope=True),
    "lightningdit": dict(norm="rms", norm_affine=True, mlp="swiglu", qk_norm=False, rope=True),
    "dit": dict(norm="layer", norm_affine=False, mlp="gelu", qk_norm=False, rope=False),
}


def parse_size(size: str) -> dict[str, int]:
    """Return hidden_size, depth, num_heads and patch_size of a size such as "XL/2"."""
    name, _, patch = size.partition("/")
    if name not in SIZES or not patch.isdigit() or int(patch) == 0:
        raise ValueError(f'size must be one of {", ".join(SIZES)} and a patch, as "B/2": {size!r}')
    width, depth, heads = SIZES[name]
    return dict(hidden_size=width, depth=depth, num_heads=heads, patch_size=int(patch))


@dataclass(frozen=True)
class NetworkConfig:
    """Base of every network setting."""

    def build(self, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """Return a new network for data of `shape` (C, H, W); num_classes 0 = unconditional."""
        raise NotImplementedError(f"{type(self).__name__} must define build")


def resolve(
    config: NetworkConfig, size_of: Callable[[str], dict[str, int] | None] = parse_size
) -> dict[str, Any]:
    """Return the settings that are not null, over the numbers of the named size."""
    options: dict[str, Any] = asdict(config)  # pyright: ignore[reportArgumentType]
    size, _ = options.pop("size", None), options.pop("gradient_checkpointing")
    named = (size_of(size) or {}) if size else {}
    return named | {key: value for key, value in options.items() if value is not None}


N = TypeVar("N", bound=Network)


def finish(
    config: Any,
    kind: Callable[..., N],
    shape: tuple[int, int, int],
    num_classes: int,
    options: dict,
) -> N:
    """Build `kind` for the data, or name the numbers that are still missing."""
    channels, height, width = shape
    if height != width:
        raise ValueError(f"the data must be square, got height {height} and width {width}")
    needed = {"hidden_size", "depth", "num_heads", "patch_size", "model_channels"}
    missing = {f.name for f in fields(config)} & needed - options.keys()
    if missing:
        raise ValueError(f"give size, or also {', '.join(sorted(missing))}")
    network = kind(input_size=height, in_channels=channels, num_classes=num_classes, **options)
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


@dataclass(frozen=True)
class DiTConfig(NetworkConfig):
    """A diffusion transformer; the defaults are TiT's (RMSNorm, QK-norm, rotary, SwiGLU)."""

    size: str | None = None
    """Named size, "WIDTH/PATCH", such as "B/2"; the four numbers below override its parts."""
    hidden_size: int | None = None
    """Width of a token."""
    depth: int | None = None
    """Number of blocks."""
    num_heads: int | None = None
    """Number of attention heads."""
    patch_size: int | None = None
    """Side of a patch."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over hidden_size (SwiGLU takes 2/3 of it)."""
    family: Literal["tit", "lightningdit", "dit"] = "tit"
    """Architecture that the switches left at null follow; "dit" is also SiT and REPA."""
    norm: Literal["rms", "layer"] | None = None
    """Kind of norm."""
    norm_affine: bool | None = None
    """Whether norms have a learned scale."""
    mlp: Literal["swiglu", "gelu"] | None = None
    """Kind of MLP."""
    qk_norm: bool | None = None
    """Normalise queries and keys."""
    qk_norm_affine: bool | None = None
    """Whether QK-norms have a learned scale; null: as norm_affine."""
    rope: bool | None = None
    """Rotary positions in attention."""
    sincos: bool = True
    """Add fixed sin-cos positions to the tokens."""
    shift: bool = True
    """Modulate with a shift beside the scale."""
    learn_sigma: bool = False
    """The head has a second half that is not part of F (weights of DiT and SiT)."""
    second_time: bool = False
    """Accept a second time s (flow maps); zero-initialised, so one-time weights stay valid."""
    guidance_input: bool = False
    """Accept the guidance scale as an input; zero-initialised as well."""
    time_scale: float = 1.0
    """Factor on t before the sinusoids."""
    time_max_period: float = 10000.0
    """Longest period of the time sinusoids."""
    convention: Literal["ucgm", "reversed", "ddpm"] = "ucgm"
    """Time and sign that the weights were trained with; "ucgm" unless they were imported."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about 30 % more time."""

    def build(self, shape: tuple[int, int, int], num_classes: int) -> DiT:
        """Return a new DiT for data of `shape` (C, H, W); num_classes 0 = unconditional."""
        options = resolve(self)
        family = options.pop("family")
        if family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
        options = FAMILIES[family] | options
        return finish(self, DiT, shape, num_classes, options)


@dataclass(frozen=True)
class DDTConfig(NetworkConfig):
    """Decoupled diffusion transformer (arXiv:2504.05741)."""

    size: str | None = None
    """Named size, "WIDTH/PATCH", such as "XL/2"; the five numbers below override its parts."""
    hidden_size: int | None = None
    """Width of a token."""
    depth: int | None = None
    """Number of blocks, encoder and decoder together."""
    encoder_depth: int | None = None
    """Blocks of the encoder; null: all but 4 (all but 6 at XL), as published."""
    num_heads: int | None = None
    """Number of attention heads."""
    patch_size: int | None = None
    """Side of a patch."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over hidden_size (SwiGLU takes 2/3 of it)."""
    second_time: bool = False
    """Accept a second time s (flow maps); zero-initialised, so one-time weights stay valid."""
    guidance_input: bool = False
    """Accept the guidance scale as an input; zero-initialised as well."""
    time_scale: float = 1.0
    """Factor on t before the sinusoids."""
    time_max_period: float = 10000.0
    """Longest period of the time sinusoids; the published weights have 10."""
    convention: Literal["ucgm", "reversed"] = "ucgm"
    """Time and sign that the weights were trained with; "ucgm" unless they were imported."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about 30 % more time."""

    def build(self, shape: tuple[int, int, int], num_classes: int) -> DDT:
        """Return a new DDT for data of `shape` (C, H, W); num_classes 0 = unconditional."""
        options = resolve(self)
        depth = options.get("depth", 0)
        options.setdefault("encoder_depth", depth - (6 if depth >= 28 else min(4, depth - 1)))
        return finish(self, DDT, shape, num_classes, options)


@dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """U-Net for pixels, through diffusers."""

    channels: tuple[int, ...] = (128, 256, 256, 256)
    """Width of each level; level i works at side / 2^i."""
    layers_per_block: int = 2
    """Residual blocks per level."""
    attention: tuple[int, ...] = (16,)
    """Sides at which attention follows every residual block."""
    head_size: int = 64
    """Channels of an attention head."""
    norm_groups: int = 32
    """Groups of GroupNorm; divides every width."""
    second_time: bool = False
    """Accept a second time s (flow maps); zero-initialised, so one-time weights stay valid."""
    guidance_input: bool = False
    """Accept the guidance scale as an input; zero-initialised as well."""
    time_scale: float = 1000.0
    """Factor on t before the sinusoids."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass."""

    def build(self, shape: tuple[int, int, int], num_classes: int) -> UNet:
        """Return a new U-Net for data of `shape` (C, H, W); num_classes 0 = unconditional."""
        return finish(self, UNet, shape, num_classes, resolve(self))


@dataclass(frozen=True)
class EDM2Config(NetworkConfig):
    """EDM2's magnitude-preserving U-Net (arXiv:2312.02696)."""

    size: Literal["XS", "S", "M", "L", "XL", "XXL"] | None = None
    """Published width; model_channels overrides it."""
    model_channels: int | None = None
    """Width of the first level, a multiple of 64."""
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    """Width of each level over model_channels."""
    num_blocks: int = 3
    """Blocks per level."""
    attention: tuple[int, ...] = (16, 8)
    """Sides with attention."""
    second_time: bool = False
    """Accept a second time s (flow maps); zero-initialised, so one-time weights stay valid."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass."""

    def build(self, shape: tuple[int, int, int], num_classes: int) -> EDM2:
        """Return a new EDM2 for data of `shape` (C, H, W); num_classes 0 = unconditional."""
        options = resolve(self, {k: {"model_channels": v} for k, v in MODEL_CHANNELS.items()}.get)
        return finish(self, EDM2, shape, num_classes, options)
