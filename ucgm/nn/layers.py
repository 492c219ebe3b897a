"""The parts of a transformer block under adaptive modulation (DiT, arXiv:2212.09748).

With the conditioning vector c,

    (b1, a1, g1, b2, a2, g2) = W silu(c) + w
    x <- x + g1 * attention((1 + a1) * norm(x) + b1)
    x <- x + g2 * mlp((1 + a2) * norm(x) + b2)

W = w = 0 at the start ("adaLN-Zero"), so that every block is the identity. Without shift there is
no b1, b2. Under autocast to bfloat16 the tokens x, the norms and the gates are bfloat16, with sums
in float32, and W silu(c) + w of one row an image is made in float32. RMSNorm is arXiv:1910.07467,
QK-norm arXiv:2302.05442, SwiGLU arXiv:2002.05202. Parameter names are those of the public networks,
so that their weights load by name.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import forward_ad


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the channel pairs of `x` (..., N, head_dim) by the angles of `table` (N, ..., 2)."""
    compiling = torch.compiler.is_compiling()
    if x.dtype != table.dtype and not compiling:
        return _rotate_halves(x, table)
    pairs = x.to(table.dtype).unflatten(-1, (-1, 2))
    if compiling or x.device.type == "mps":
        (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        across = torch.addcmul(a * cos, b, sin, value=-1.0)
        turned = torch.stack((across, torch.addcmul(a * sin, b, cos)), dim=-1)
    else:
        # One complex product: half the time of the line above, but no compiler fuses it.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    return turned.flatten(-2).to(x.dtype)


def _rotate_halves(x: Tensor, table: Tensor) -> Tensor:
    """As :func:`rotate`, by one product with a matrix of 2 x 2 blocks for every token.

    It reads and writes `x` once, where products and sums of pairs do so three to four times, and
    rounds once.
    """
    rows = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)
    return torch.bmm(rows, _turns(table, x.dtype)).transpose(0, 1).view(x.shape)


def _turns(table: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (N, head_dim, head_dim) of `table` (N, head_dim / 2, 2), for rows from the left.

    Made once for a view, which lasts for one pass: blocks share them, and so does autograd.
    """
    turns = vars(table).get("turns")
    if turns is None or turns.dtype != dtype:
        cos, sin = table.to(dtype).unbind(-1)
        blocks = torch.stack((torch.stack((cos, sin), -1), torch.stack((-sin, cos), -1)), -2)
        places = torch.eye(cos.shape[-1], dtype=dtype, device=table.device)[:, None, :, None]
        turns = (blocks[:, :, :, None] * places).flatten(3).flatten(1, 2)
        if table._is_view():
            vars(table)["turns"] = turns
    return turns


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """(1 + scale) x + shift for `x` (B, tokens, D), `shift` and `scale` (B, 1, D) or like x."""
    return x * (1 + scale) if shift is None else torch.addcmul(shift, x, 1 + scale)


def _for_norm(x: Tensor) -> Tensor:
    """`x` (..., width), in float32 where it is half and carries a tangent.

    The tangent of a norm of halves is float32 on CUDA, and no product takes it beside a half.
    """
    if torch.compiler.is_compiling() or x.dtype not in (torch.bfloat16, torch.float16):
        return x
    return x if forward_ad.unpack_dual(x).tangent is None else x.float()


class RMSNorm(nn.RMSNorm):
    """x / rms(x) in the dtype of x, where versions of torch under autocast differ."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., width); sums are float32 or wider."""
        wide = _for_norm(x)
        weight = self.weight if self.weight is None else self.weight.to(wide.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(wide, self.normalized_shape, weight, self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """(x - mean(x)) / std(x) in the dtype of x, where autocast would widen it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., width); sums are float32 or wider."""
        wide = _for_norm(x)
        weight, bias = (v if v is None else v.to(wide.dtype) for v in (self.weight, self.bias))
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def make_norm(kind: str, width: int, affine: bool, eps: float = 1e-6) -> nn.Module:
    """Return the norm called `kind`, "rms" or "layer"."""
    if kind == "rms":
        return RMSNorm(width, eps=eps, elementwise_affine=affine)
    if kind == "layer":
        return LayerNorm(width, eps=eps, elementwise_affine=affine)
    raise ValueError(f'norm must be "rms" or "layer", got {kind!r}')


class Attention(nn.Module):
    """Self-attention with one qkv projection, optional QK-norm and rotary positions."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        qk_norm: str | None = None,
        affine: bool = False,
        bias: bool = True,
        out_bias: bool = True,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"hidden_size {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        head = width // num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        # The public networks with a LayerNorm here (REPA) have its default epsilon.
        eps = 1e-5 if qk_norm == "layer" else 1e-6
        self.q_norm = make_norm(qk_norm, head, affine, eps) if qk_norm else None
        self.k_norm = make_norm(qk_norm, head, affine, eps) if qk_norm else None
        self.proj = nn.Linear(width, width, bias=out_bias)

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """Mix the tokens of `x` (B, N, D); `rope` is the table of `Rotary`."""
        heads = rearrange(self.qkv(x), "b n (k h d) -> k b h n d", k=3, h=self.num_heads)
        q, k, v = heads.unbind(0)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).contiguous().flatten(2))


class SwiGLU(nn.Module):
    """w3 (silu(a) * b) with (a, b) = w12 x."""

    def __init__(self, width: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden, bias=bias)
        self.w3 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., D) to (..., D)."""
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


class SplitSwiGLU(nn.Module):
    """w2 (silu(w1 x) * w3 x) without biases, three matrices (the layout of DDT)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (..., D) to (..., D)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def make_mlp(kind: str, width: int, ratio: float, bias: bool = True) -> nn.Module:
    """Return the MLP called `kind`; "swiglu" has 2/3 of the hidden width to match "gelu"."""
    if kind == "swiglu":
        return SwiGLU(width, int(2 / 3 * int(width * ratio)), bias)
    if kind == "gelu":
        fc1 = nn.Linear(width, int(width * ratio))
        fc2 = nn.Linear(fc1.out_features, width)
        return nn.Sequential(OrderedDict(fc1=fc1, gelu=nn.GELU("tanh"), fc2=fc2))
    raise ValueError(f'mlp must be "swiglu" or "gelu", got {kind!r}')


def make_modulation(width: int, parts: int, silu: bool = True) -> nn.Sequential:
    """Return the map from c to `parts` shifts, scales and gates."""
    linear = nn.Linear(width, parts * width)
    return nn.Sequential(nn.SiLU(), linear) if silu else nn.Sequential(linear)


def modulation(layer: nn.Module, x: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """Chunks like a row of `x` (B, N, D) of `layer(c)`, `c` (B, 1, D) or (B, N, D)."""
    if c.shape[1] > 1:
        parameters = layer(c)
    else:  # few rows: a cast of the weights to half would take longer than the product
        with torch.autocast(c.device.type, enabled=False):
            parameters = layer(c).to(x.dtype)
    return parameters.chunk(parameters.shape[-1] // x.shape[-1], dim=-1)


class Block(nn.Module):
    """Attention and MLP, each modulated by the conditioning; subclasses create the five parts."""

    norm1: nn.Module
    attn: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    adaLN_modulation: nn.Module

    def forward(self, x: Tensor, c: Tensor, rope: Tensor | None = None) -> Tensor:
        """Transform tokens `x` (B, N, D) under `c`, (B, 1, D) or (B, N, D)."""
        parts = modulation(self.adaLN_modulation, x, c)
        if len(parts) == 6:
            b1, a1, g1, b2, a2, g2 = parts
        else:
            (a1, g1, a2, g2), b1, b2 = parts, None, None
        x = torch.addcmul(x, g1, self.attn(modulate(self.norm1(x), b1, a1), rope))
        return torch.addcmul(x, g2, self.mlp(modulate(self.norm2(x), b2, a2)))


class FinalLayer(nn.Module):
    """Modulated norm (without `modulated` a plain one) and projection to the pixels of a patch."""

    def __init__(
        self,
        width: int,
        out_features: int,
        norm: str,
        norm_affine: bool,
        silu: bool = True,
        modulated: bool = True,
    ) -> None:
        super().__init__()
        self.norm_final = make_norm(norm, width, norm_affine)
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = make_modulation(width, 2, silu) if modulated else None

    def forward(self, x: Tensor, c: Tensor | None, linear: nn.Linear | None = None) -> Tensor:
        """Map `x` (B, N, D), `c` (B, 1, D) or (B, N, D) to (B, N, out_features of `linear`)."""
        tokens = self.norm_final(x)
        if self.adaLN_modulation is not None and c is not None:
            shift, scale = modulation(self.adaLN_modulation, x, c)
            tokens = modulate(tokens, shift, scale)
        return (linear or self.linear)(tokens)


class PlainBlock(nn.Module):
    """x <- x + a attention(norm(x)), x <- x + b mlp(norm(x)): conditions come as tokens.

    `gated` blocks learn a, b (D,), 0 at the start, and have no biases (iMF, arXiv:2512.02012);
    others have a = b = 1 and biases (RAEv2, arXiv:2605.18324).
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, gated: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (make_norm("rms", width, True) for _ in range(2))
        self.attn = Attention(width, num_heads, "rms", True, not gated, not gated)
        self.mlp = make_mlp("swiglu", width, mlp_ratio, bias=not gated)
        gates = [nn.Parameter(torch.zeros(width)) if gated else None for _ in range(2)]
        self.attn_scale, self.mlp_scale = gates

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """Transform tokens `x` (B, N, D), turned by the table `rope` (N, D / heads / 2, 2)."""
        mixed = self.attn(self.norm1(x), rope)
        x = x + (mixed if self.attn_scale is None else mixed * self.attn_scale)
        mapped = self.mlp(self.norm2(x))
        return x + (mapped if self.mlp_scale is None else mapped * self.mlp_scale)
