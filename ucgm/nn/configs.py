"""Network settings as frozen dataclasses, read by the command line and stored with a run.

A size is "WIDTH/PATCH": T, S, B, L, XL, H (of JiT, arXiv:2511.13720), 1p0B, 1p6B (the last two of
UCGM, arXiv:2505.07447) and N (for tests) name (hidden_size, depth, num_heads); the number is the
side of a patch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensor

from ucgm.nn.ddt import DDT
from ucgm.nn.dit import DiT
from ucgm.nn.edm2 import EDM2, MODEL_CHANNELS
from ucgm.nn.network import Network
from ucgm.nn.rae import DiTDH
from ucgm.nn.unet import UNet
from ucgm.runtime.values import Positive, Range, check_values

# Larger numbers are slips of the hand: nobody has memory for them.
Width = Annotated[int, Range(1, 65_536)]
Depth = Annotated[int, Range(1, 1000)]
Ratio = Annotated[float, Range(1e-3, 1e3)]
Convention = Literal["ucgm", "reversed", "jit", "clean"]

SIZES: dict[str, tuple[int, int, int]] = {
    "N": (48, 2, 4),
    "T": (96, 4, 4),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "H": (1280, 32, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}

FAMILIES: dict[str, dict[str, Any]] = {
    "tit": dict(norm="rms", norm_affine=False, mlp="swiglu", qk_norm=True, rope=True),
    "lightningdit": dict(norm="rms", norm_affine=True, mlp="swiglu", qk_norm=False, rope=True),
    "dit": dict(norm="layer", norm_affine=False, mlp="gelu", qk_norm=False, rope=False),
    "jit": dict(
        norm="rms", norm_affine=True, mlp="swiglu", qk_norm=True, rope=True, context_tokens=32
    ),
}
FAMILIES["rit"] = FAMILIES["jit"]


def parse_size(size: str) -> dict[str, int]:
    """Return hidden_size, depth, num_heads and patch_size of a size such as "XL/2"."""
    name, _, patch = size.partition("/")
    if name not in SIZES or not patch.isdigit() or int(patch) == 0:
        raise ValueError(f'size must be one of {", ".join(SIZES)} and a patch, as "B/2": {size!r}')
    width, depth, heads = SIZES[name]
    return dict(hidden_size=width, depth=depth, num_heads=heads, patch_size=int(patch))


def _check_memory(network: Network) -> None:
    """Refuse weights that the memory that is free cannot hold."""
    size, free = sum(4 * p.numel() for p in network.parameters()), psutil.virtual_memory().available
    if size > free:
        raise MemoryError(f"{size / 2**30:,.1f} GiB of weights, {free / 2**30:,.1f} GiB are free")


_NUMBERS = {"hidden_size", "depth", "num_heads", "patch_size", "model_channels"}
_NOT_ARGUMENTS = {"size", "family", "gradient_checkpointing"}
"""Settings that a size gives; settings that are no arguments of a network."""


@dataclass(frozen=True)
class NetworkConfig(ABC):
    """Base of every network setting."""

    _: KW_ONLY
    second_time: bool = False
    """Accept a second time s (flow maps); zero-initialised, so one-time weights stay valid."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about 30 % more time."""

    def __post_init__(self) -> None:
        """Refuse values that a setting does not know."""
        check_values(self, "model")

    @abstractmethod
    def defaults(self) -> tuple[Callable[..., Network], dict[str, Any]]:
        """Return the class of the network, and what its settings are where they are null."""

    def build(self, shape: tuple[int, int, int], num_classes: int) -> Network:
        """Return a new network for data of `shape` (C, H, W); num_classes 0 = unconditional.

        Raises:
            ValueError: the data are not square, a number is missing, or the weights are more than
                the memory of this machine: the kernel would kill whoever asks for it.
        """
        channels, height, width = shape
        if height != width:
            raise ValueError(f"the data must be square, got height {height} and width {width}")
        kind, options = self.defaults()
        settings: dict[str, Any] = asdict(self)
        options |= {key: value for key, value in settings.items() if value is not None}
        missing = settings.keys() & _NUMBERS - options.keys()
        if missing:
            raise ValueError(f"give size, or also {', '.join(sorted(missing))}")
        options = {key: value for key, value in options.items() if key not in _NOT_ARGUMENTS}
        make = partial(kind, input_size=height, in_channels=channels, num_classes=num_classes)
        try:
            if isinstance(like := torch.empty(0), FakeTensor) or like.is_meta:
                network = make(**options)
            else:
                with torch.device("meta"):
                    _check_memory(make(**options))
                network = make(**options)
        except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"no network of these settings sees {shape}: {reason}") from error
        if settings["gradient_checkpointing"]:
            network.enable_gradient_checkpointing()
        return network


@dataclass(frozen=True)
class TransformerConfig(NetworkConfig):
    """What DiT and DDT have in common."""

    size: str | None = None
    """Named size, "WIDTH/PATCH", such as "B/2"; the four numbers below override its parts."""
    hidden_size: Width | None = None
    """Width of a token."""
    depth: Depth | None = None
    """Number of blocks; of a DDT, encoder and decoder together."""
    num_heads: Width | None = None
    """Number of attention heads; divides hidden_size."""
    patch_size: Width | None = None
    """Side of a patch; divides the side of the data."""
    mlp_ratio: Ratio = 4.0
    """Hidden width of the MLP over hidden_size (SwiGLU takes 2/3 of it)."""
    guidance_input: bool = False
    """Accept the guidance scale g as 1 - 1/g; zero-initialised as well."""
    time_scale: Positive = 1.0
    """Factor on t before the sinusoids."""
    time_max_period: Positive = 10000.0
    """Longest period of the time sinusoids, over 2 pi; the published weights of DDT have 10."""
    convention: Convention = "ucgm"
    """What the output is: F; "jit": the data, turned into F (arXiv 2511.13720); "reversed": of
    imported weights."""


@dataclass(frozen=True)
class DiTConfig(TransformerConfig):
    """A diffusion transformer; the defaults are TiT's (RMSNorm, QK-norm, rotary, SwiGLU)."""

    family: Literal["tit", "lightningdit", "dit", "jit", "rit"] = "tit"
    """Architecture that the switches left at null follow; "dit" is also SiT and REPA; "jit" (of
    pixels) and "rit" (of latents) are made for convention "jit"."""
    norm: Literal["rms", "layer"] | None = None
    """RMSNorm or LayerNorm."""
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
    bottleneck: Width | None = None
    """Channels between pixels and token; null: none; of "jit" 128, and 256 from width 1280 on."""
    context_tokens: Annotated[int, Range(0, 1024)] | None = None
    """Tokens of the label beside those of the patches; null: 32 of "jit", none of others."""
    context_start: Annotated[int, Range(0, 1000)] | None = None
    """First block that has them; null: 0, of "jit" and "rit" a third of the depth, or 8 of 28."""
    feature_token: bool = False
    """Denoise the class token of the encoder beside its patches: weights of RiT, native only."""
    guidance_interval: bool = False
    """Accept the interval of the guidance too (iMF, arXiv 2512.02012); needs guidance_input."""
    guidance_output: bool = False
    """Multiply F by the guidance scale (TVM, arXiv 2511.19797); needs guidance_input."""
    velocity_blocks: Annotated[int, Range(0, 1000)] = 0
    """Last blocks that exist twice: the others end in a second head, the velocity's (iMF)."""
    exit_layer: Depth | None = None
    """Blocks after which an exit head predicts too (internal guidance, arXiv 2512.24176)."""
    decoupled_depth: Depth | None = None
    """Later blocks and the head are told s in place of t (decoupled MeanFlow, arXiv 2510.24474):
    one-time weights load as they are; needs second_time."""
    noise_scale: Positive = 1.0
    """Noise over data that weights of JiT at 512 pixels see; 2 there, on the path LoudLinear."""
    fourier_time: bool = False
    """Embed t by sinusoids of random frequencies, which are stored (weights of RAE's DiT)."""
    learn_sigma: bool = False
    """The head has a second half that is not part of F (weights of DiT and SiT)."""
    convention: Literal[Convention, "ddpm"] = "ucgm"
    """As of all networks; "ddpm" for imported weights alone."""

    def defaults(self) -> tuple[Callable[..., Network], dict[str, Any]]:
        """Return DiT, and the switches of the family and the numbers of the size."""
        numbers = parse_size(self.size) if self.size else {}
        width, depth = (getattr(self, k) or numbers.get(k, 0) for k in ("hidden_size", "depth"))
        options = FAMILIES[self.family] | numbers
        if self.family in ("jit", "rit"):
            options["context_start"] = 8 if depth == 28 else depth // 3
        if self.family == "jit":
            options["bottleneck"] = 128 if width < 1280 else 256
        return DiT, options


@dataclass(frozen=True)
class DDTConfig(TransformerConfig):
    """Decoupled diffusion transformer (arXiv:2504.05741)."""

    encoder_depth: Depth | None = None
    """Blocks of the encoder; null: all but 4 (all but 6 at XL), as published."""

    def defaults(self) -> tuple[Callable[..., Network], dict[str, Any]]:
        """Return DDT, and the numbers of the size and the depth of the encoder."""
        numbers = parse_size(self.size) if self.size else {}
        depth = self.depth or numbers.get("depth", 0)
        return DDT, numbers | {"encoder_depth": depth - (6 if depth >= 28 else min(4, depth - 1))}


@dataclass(frozen=True)
class DiTDHConfig(TransformerConfig):
    """DiT-DH for latents of a representation autoencoder (RAE, arXiv:2510.11690)."""

    head_width: Width = 2048
    """Width of a token in the head."""
    head_depth: Depth = 2
    """Blocks of the head; those of the encoder are depth."""
    head_heads: Width = 16
    """Attention heads there."""
    qk_norm: bool = False
    """Normalise queries and keys."""
    fourier_time: bool = True
    """Embed t by sinusoids of random frequencies, which are stored."""
    fourier_gap: bool = False
    """Embed t - s so as well (weights of MeanFlow on RAE's latents)."""

    def defaults(self) -> tuple[Callable[..., Network], dict[str, Any]]:
        """Return DiTDH, and the numbers of the size."""
        return DiTDH, parse_size(self.size) if self.size else {}


@dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """U-Net for pixels, through diffusers."""

    channels: tuple[Width, ...] = (128, 256, 256, 256)
    """Width of each level; level i works at side / 2^i."""
    layers_per_block: Depth = 2
    """Residual blocks per level."""
    attention: tuple[Width, ...] = (16,)
    """Sides at which attention follows every residual block."""
    head_size: Width = 64
    """Channels of an attention head."""
    norm_groups: Width = 32
    """Groups of GroupNorm; divides every width."""
    guidance_input: bool = False
    """Accept the guidance scale as an input; zero-initialised as well."""
    time_scale: Positive = 1000.0
    """Factor on t before the sinusoids."""
    convention: Convention = "ucgm"
    """As of a transformer."""

    def defaults(self) -> tuple[Callable[..., Network], dict[str, Any]]:
        """Return UNet: no setting may be null."""
        return UNet, {}


@dataclass(frozen=True)
class EDM2Config(NetworkConfig):
    """EDM2's magnitude-preserving U-Net (arXiv:2312.02696)."""

    size: Literal["XS", "S", "M", "L", "XL", "XXL"] | None = None
    """Published width; model_channels overrides it."""
    model_channels: Width | None = None
    """Width of the first level, a multiple of 64."""
    channel_mult: tuple[Width, ...] = (1, 2, 3, 4)
    """Width of each level over model_channels."""
    num_blocks: Depth = 3
    """Blocks per level."""
    attention: tuple[Width, ...] = (16, 8)
    """Sides with attention."""

    def defaults(self) -> tuple[Callable[..., Network], dict[str, Any]]:
        """Return EDM2, and the width of the size."""
        return EDM2, {"model_channels": MODEL_CHANNELS[self.size]} if self.size else {}
