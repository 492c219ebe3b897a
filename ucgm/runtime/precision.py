"""Precision: TF32 or exact float32, and autocast to bfloat16 as the launcher asks.

NVIDIA's GPUs multiply float32 matrices with 10 bits of mantissa (TF32) where they are allowed to;
torch allows it for convolutions unless told otherwise.  A protocol that says fp32 means 23 bits.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Matrix products and convolutions of float32 in TF32 or exactly, whatever was set outside."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = cudnn


@contextlib.contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No TF32 and no autocast, whatever the caller set for its own network."""
    with float32_products(tf32=False), torch.autocast(device.type, enabled=False):
        yield


def precision() -> str:
    """``no`` or ``bf16`` as ``accelerate launch --mixed_precision`` says; unsaid, bf16 on a GPU."""
    gpu = torch.cuda.is_available() and "ACCELERATE_USE_CPU" not in os.environ
    name = os.environ.get("ACCELERATE_MIXED_PRECISION", "bf16" if gpu else "no")
    if name not in ("no", "bf16"):
        raise ValueError(f"--mixed_precision {name} is not supported: use bf16 or no")
    return name


def autocast(device: torch.device, sharded: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 when the launcher asked for it.

    Its cache of weights would keep a whole copy of a ``sharded`` network, and is off for one.
    """
    if precision() == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=not sharded)
    return contextlib.nullcontext()
