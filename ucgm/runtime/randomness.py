"""Counter-based random numbers: row i is a pure function of its key.

Training noise must not depend on how a global batch is cut into processes, and sample i must not
depend on the batch it happens to be drawn in.  Both follow when every row has an integer key and
the row's numbers are a hash of (key, stream, position):

    bits(key, stream, n) = mix(mix(key + stream * C) + (n + 1) * GOLDEN)

where ``mix`` is the 64-bit finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).  Normal
numbers are Box-Muller pairs: the upper 32 bits give the radius, the lower 32 the angle.  All of it
is elementwise integer arithmetic on the device, without a per-row Python object or a host sync.
"""

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the odd number nearest to 2^64 / phi
_STREAM = -4417276706812531889  # 0xC2B2AE3D27D4EB4F, an odd constant of xxHash
_MULTIPLY_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MULTIPLY_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: int64 shifts are arithmetic in torch."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """The bijective finaliser of SplitMix64 on int64 (wrapping) arithmetic, any shape."""
    x = (x ^ _shift_right(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLY_2
    return x ^ _shift_right(x, 31)


class RowRandom:
    """Random numbers of a batch in which row i depends on ``keys[i]`` alone.

    Each call of :meth:`uniform` or :meth:`normal` uses the next stream, so two calls are
    independent; two objects with equal keys repeat each other.

    Args:
        keys: (B,) int64, any values; equal keys give equal rows.
        stream: the stream that the first call uses.
    """

    def __init__(self, keys: Tensor, stream: int = 0) -> None:
        if keys.dtype != torch.int64 or keys.ndim != 1:
            raise ValueError(f"keys must be int64 of shape (B,), got {keys.dtype} {keys.shape}")
        self.keys = keys
        self.stream = stream

    @classmethod
    def for_rows(cls, seed: int, step: int, rows: Tensor) -> "RowRandom":
        """Keys of ``rows`` (B,) int64, the positions in the global batch, at optimizer ``step``."""
        place = torch.tensor([seed, step], dtype=torch.int64, device=rows.device)
        root = mix(mix(place[0] * _GOLDEN + 1) + place[1] * _STREAM)
        return cls(mix(root + rows.to(torch.int64) * _GOLDEN))

    @classmethod
    def for_samples(cls, seed: int, indices: Tensor) -> "RowRandom":
        """Keys of the samples ``indices`` (B,) int64 of a set generated with ``seed``."""
        return cls.for_rows(seed, -1, indices)

    def _bits(self, count: int) -> Tensor:
        offset = (self.stream * _STREAM + 2**63) % 2**64 - 2**63  # wrapped to int64
        key = mix(self.keys + offset)
        self.stream += 1
        counter = torch.arange(1, count + 1, dtype=torch.int64, device=key.device)
        return mix(key[:, None] + counter[None, :] * _GOLDEN)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) numbers in the open interval (0, 1)."""
        bits = self._bits(math.prod(shape))
        if dtype == torch.float64:
            numbers = (_shift_right(bits, 11).to(dtype) + 0.5) * 2.0**-53
        else:
            numbers = (_shift_right(bits, 41).to(torch.float32) + 0.5) * 2.0**-23
        return numbers.to(dtype).reshape(len(self.keys), *shape)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) standard normal numbers; float32 and float64 agree to float32 precision."""
        count = math.prod(shape)
        bits = self._bits((count + 1) // 2)
        work = torch.float64 if dtype == torch.float64 else torch.float32
        radius = ((_shift_right(bits, 32).to(work) + 0.5) * 2.0**-32).log().mul(-2.0).sqrt()
        angle = (bits & 0xFFFFFFFF).to(work) * (2.0 * math.pi * 2.0**-32)
        pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
        rows = pairs.reshape(len(self.keys), -1)[:, :count]
        return rows.to(dtype).reshape(len(self.keys), *shape)


def as_random(
    generator: "RowRandom | torch.Generator | None", batch: int, device: torch.device
) -> RowRandom:
    """Row keys from whatever the caller has: keys, a torch generator, or the global generator."""
    if isinstance(generator, RowRandom):
        return generator
    where = generator.device if generator is not None else torch.device("cpu")
    low, high = -(2**63), 2**63 - 1
    keys = torch.randint(low, high, (batch,), generator=generator, device=where)
    return RowRandom(keys.to(device))
