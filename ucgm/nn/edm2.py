"""EDM2's U-Net in magnitude-preserving form (arXiv:2312.02696; equation numbers are its own).

Every operation keeps the expected magnitude (root mean square) of its input at one:

    unit(x)      = x / (rms(x) + 1e-4)
    weights      w = gain * unit(v) / sqrt(fan_in), per output unit              (eq. 47, 66)
    mp_silu(x)   = silu(x) / 0.596                                               (eq. 81)
    mp_sum(a, b) = ((1 - r) a + r b) / sqrt((1 - r)^2 + r^2)                     (eq. 88)
    mp_cat(a, b) = sqrt((Na + Nb)/((1 - r)^2 + r^2)) [(1 - r) a/sqrt(Na), r b/sqrt(Nb)]  (eq. 103)
    fourier(c)   = sqrt(2) cos(2 pi (f c + p)), f ~ N(0, 1), p ~ U(0, 1), stored (eq. 75)

The network's input is x_t of the EDM transport, already scaled by c_in, and c_noise = ln(sigma)/4
("native time"); its output is that transport's F. A label is a one-hot vector times
sqrt(num_classes); the null class is the zero vector, as in the released code of EDM2.
In training the stored weights v are themselves kept at unit magnitude, before each forward pass
that records gradients (eq. 66); the published networks differ in width alone.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ucgm.nn.network import Network, require_levels

MODEL_CHANNELS = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}


def unit(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """Scale `x`, of any shape, to root mean square one over `dims`, in float32 or wider."""
    count = math.prod(x.shape[d] for d in ((dims,) if isinstance(dims, int) else dims))
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=wide)
    return x / (1e-4 + norm / math.sqrt(count)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Magnitude-preserving SiLU of any shape."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, r: float) -> Tensor:
    """Magnitude-preserving sum of `a` and `b` of any shape; `r` is the share of `b`."""
    return torch.lerp(a, b, r) / math.hypot(1 - r, r)


def mp_cat(a: Tensor, b: Tensor, r: float = 0.5) -> Tensor:
    """Magnitude-preserving concatenation of channels (B, C, H, W); `r` is the share of `b`."""
    na, nb = a.shape[1], b.shape[1]
    scale = math.sqrt(na + nb) / math.hypot(1 - r, r)
    return torch.cat([a * (scale * (1 - r) / math.sqrt(na)), b * (scale * r / math.sqrt(nb))], 1)


class MPFourier(nn.Module):
    """Random Fourier features of a scalar; frequencies and phases are part of the weights."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, c: Tensor) -> Tensor:
        """Map `c` (B,) to (B, width), in float32 or wider."""
        wide = torch.float64 if self.freqs.dtype == torch.float64 else torch.float32
        angle = c.to(wide)[:, None] * self.freqs.to(wide) + self.phases.to(wide)
        return math.sqrt(2) * angle.cos()


def scaled(weight: Tensor, gain: Tensor | float, dtype: torch.dtype) -> Tensor:
    """`weight` (out, ...) as the layers use it, of unit rows over sqrt(fan_in), times `gain`."""
    rows = unit(weight, tuple(range(1, weight.ndim)))
    return (rows * (gain / math.sqrt(weight[0].numel()))).to(dtype)


class MPLinear(nn.Linear):
    """Matrix with unit weights and no bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Draw standard normal weights."""
        nn.init.normal_(self.weight)

    def forward(self, input: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map `input` (B, in) to (B, out); `gain` scales the output."""
        return F.linear(input, scaled(self.weight, gain, input.dtype))


class MPConv(nn.Conv2d):
    """Convolution (kernel 1 or 3) with unit weights and no bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)

    def reset_parameters(self) -> None:
        """Draw standard normal weights."""
        nn.init.normal_(self.weight)

    def forward(self, input: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map `input` (B, in, H, W) to (B, out, H, W); `gain` scales the output."""
        return F.conv2d(input, scaled(self.weight, gain, input.dtype), padding=self.padding)


class EDM2Block(nn.Module):
    """Residual block with optional attention; encoder blocks normalise their main branch."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        width: int,
        decoder: bool = False,
        resample: str = "keep",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.decoder, self.resample = decoder, resample
        self.num_heads = channels // 64 if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(in_channels if decoder else channels, channels, 3)
        self.emb_linear = MPLinear(width, channels)
        self.conv_res1 = MPConv(channels, channels, 3)
        self.conv_skip = MPConv(in_channels, channels, 1) if in_channels != channels else None
        self.attn_qkv = MPConv(channels, 3 * channels, 1) if self.num_heads else None
        self.attn_proj = MPConv(channels, channels, 1) if self.num_heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map `x` (B, in, H, W) under `emb` (B, width) to (B, channels, H', W')."""
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if not self.decoder:
            x = unit(x if self.conv_skip is None else self.conv_skip(x), 1)
        c = self.emb_linear(emb, self.emb_gain) + 1
        y = self.conv_res0(mp_silu(x)) * c[:, :, None, None].to(x.dtype)
        y = self.conv_res1(mp_silu(y))
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, 0.3)
        if self.attn_qkv is not None:
            x = mp_sum(x, self.attend(x), 0.3)
        return x.clamp(-256, 256)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over the pixels of (B, C, H, W) with unit queries, keys and values."""
        assert self.attn_qkv is not None and self.attn_proj is not None
        qkv = self.attn_qkv(x).unflatten(1, (self.num_heads, -1, 3)).flatten(4)
        q, k, v = unit(qkv, 2).transpose(2, 4).unbind(3)
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return self.attn_proj(y.reshape(x.shape))


class EDM2(Network):
    """EDM2's U-Net, `network(x_t, t, y, s=None) -> F`.

    Its arguments are the fields of `ucgm.nn.EDM2Config`, which documents them, those that the data
    decide, see `ucgm.nn.Network`, and `convention`: "edm" feeds the network 2.68 t - 1.59.
    """

    _no_split_modules = ["EDM2Block"]
    _repeated_blocks = ["EDM2Block"]
    _skip_layerwise_casting_patterns = ("_conv$",)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, but for quantised weights: `ValueError`."""
        if kwargs.get("quantization_config") is not None:
            raise ValueError(
                "EDM2 normalises its weights in every call, which quantised layers do not: use "
                "enable_layerwise_casting after loading to store them in fewer bits"
            )
        return super().from_pretrained(*args, **kwargs)

    @register_to_config
    def __init__(
        self,
        input_size: int = 64,
        in_channels: int = 4,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attention: tuple[int, ...] = (16, 8),
        num_classes: int = 1000,
        second_time: bool = False,
        convention: str = "edm",
    ) -> None:
        super().__init__()
        require_levels(input_size, channel_mult, "channel_mult")
        if model_channels % 64:
            raise ValueError(f"model_channels must be a multiple of 64, got {model_channels}")
        self._setup()
        channels = [model_channels * m for m in channel_mult]
        noise, width = channels[0], max(channels)
        self.emb_fourier, self.emb_noise = MPFourier(noise), MPLinear(noise, width)
        self.emb_label = MPLinear(num_classes, width) if num_classes else None
        if second_time:
            self.h_fourier, self.h_noise = MPFourier(noise), MPLinear(noise, width)
            self.h_gain = nn.Parameter(torch.zeros([]))
        skips = self._encoder(channels, width)
        self._decoder(skips, channels, width)
        self.out_conv = MPConv(channels[0], in_channels, 3)
        self.out_gain = nn.Parameter(torch.zeros([]))

    def _encoder(self, channels: list[int], width: int) -> list[int]:
        """Create the encoder; return the widths of its outputs, which the decoder concatenates."""
        config: Any = self.config
        self.enc, skips, last = nn.ModuleDict(), [], channels[0]
        for level, new in enumerate(channels):
            side = self.shape[1] >> level
            if level == 0:
                self.enc[f"{side}x{side}_conv"] = MPConv(self.shape[0] + 1, new, 3)
            else:
                self.enc[f"{side}x{side}_down"] = EDM2Block(last, last, width, resample="down")
            skips.append(last)
            for index in range(config.num_blocks):
                block = EDM2Block(last, new, width, attention=side in config.attention)
                self.enc[f"{side}x{side}_block{index}"] = block
                last = new
                skips.append(last)
        return skips

    def _decoder(self, skips: list[int], channels: list[int], width: int) -> None:
        config: Any = self.config
        decoder = partial(EDM2Block, width=width, decoder=True)
        self.dec, last = nn.ModuleDict(), channels[-1]
        for level, new in reversed(list(enumerate(channels))):
            side = self.shape[1] >> level
            if level == len(channels) - 1:
                self.dec[f"{side}x{side}_in0"] = decoder(last, last, attention=True)
                self.dec[f"{side}x{side}_in1"] = decoder(last, last)
            else:
                self.dec[f"{side}x{side}_up"] = decoder(last, last, resample="up")
            for index in range(config.num_blocks + 1):
                block = decoder(last + skips.pop(), new, attention=side in config.attention)
                self.dec[f"{side}x{side}_block{index}"] = block
                last = new

    @torch.compiler.disable()
    @torch.no_grad()
    def normalize_weights(self) -> None:
        """Bring the stored weights back to unit magnitude, in place."""
        for module in self.modules():
            if isinstance(module, MPConv | MPLinear):
                # .data: a second forward pass before backward must not invalidate the first.
                weight = module.weight.data
                weight.copy_(unit(weight, tuple(range(1, weight.ndim))))

    def native(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Public U-Net: `x` (B, C, H, W) scaled by c_in, `t` = c_noise (B,) -> (B, C, H, W)."""
        if guidance is not None:
            raise ValueError("EDM2 has no guidance input: use DiT, DDT or UNet for one")
        if self.training and torch.is_grad_enabled():
            self.normalize_weights()
        emb = self.embed(t.to(x.dtype), y, h)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips: list[Tensor] = []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("conv") else self.run([block], x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop())
            x = self.run([block], x, emb)
        return self.out_conv(x, self.out_gain)

    def embed(self, c_noise: Tensor, y: Tensor | None, h: Tensor | None) -> Tensor:
        """Return the conditioning vector, (B, width)."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.second_time:
            gap = torch.zeros_like(c_noise) if h is None else h
            emb = emb + self.h_noise(self.h_fourier(gap), self.h_gain)
        if self.emb_label is not None:
            # Class num_classes (null) is the last row, which is cut off: a zero vector.
            hot = F.one_hot(self.require_labels(y), self.num_classes + 1)[:, :-1].to(emb.dtype)
            emb = mp_sum(emb, self.emb_label(hot * math.sqrt(self.num_classes)), 0.5)
        return mp_silu(emb)
