"""Network settings as frozen dataclasses, read by the command line and stored with a run.

A size is "WIDTH/PATCH": T, S, B, L, XL, 1p0B, 1p6B (the last two of UCGM, arXiv:2505.07447) and N
(for tests) name (hidden_size, depth, num_heads); the number is the side of a patch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from ucgm.nn.dit import DiT

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


def square(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return (channels, side) of square data."""
    channels, height, width = shape
    if height != width:
        raise ValueError(f"the data must be square, got height {height} and width {width}")
    return channels, height


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
    rope: bool | None = None
    """Rotary positions in attention."""
    sincos: bool = True
    """Add fixed sin-cos positions to the tokens."""
    shift: bool = True
    """Modulate with a shift beside the scale."""
    second_time: bool = False
    """Accept a second time s (flow maps); zero-initialised, so one-time weights stay valid."""
    guidance_input: bool = False
    """Accept the guidance scale as an input; zero-initialised as well."""
    time_scale: float = 1.0
    """Factor on t before the sinusoids."""
    time_max_period: float = 10000.0
    """Longest period of the time sinusoids."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about 30 % more time."""

    def build(self, shape: tuple[int, int, int], num_classes: int) -> DiT:
        """Return a new DiT for data of `shape` (C, H, W); num_classes 0 = unconditional."""
        channels, side = square(shape)
        options: dict[str, Any] = asdict(self)
        size, family = options.pop("size"), options.pop("family")
        checkpointing = options.pop("gradient_checkpointing")
        if family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
        defaults = FAMILIES[family] | (parse_size(size) if size else {})
        options = defaults | {k: v for k, v in options.items() if v is not None}
        missing = {"hidden_size", "depth", "num_heads", "patch_size"} - options.keys()
        if missing:
            raise ValueError(f"give size, or also {', '.join(sorted(missing))}")
        network = DiT(side, in_channels=channels, num_classes=num_classes, **options)
        if checkpointing:
            network.enable_gradient_checkpointing()
        return network
