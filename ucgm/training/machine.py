"""Tricks that make a training step faster on one kind of machine, with what each is worth.

keep_freed_memory   Linux CPUs: up to a tenth of a step less (scripts/bench/training.py)
compile_blocks      ``train.compile``: fused kernels of a block, for the price of compiling one
"""

import ctypes
import sys

import torch
from torch import nn

from ucgm.runtime.sharding import blocks_of


def keep_freed_memory(device: torch.device) -> bool:
    """Let a training on a CPU keep what it frees for its next step; returns whether it does.

    A step frees its activations and asks for them again.  glibc hands large pieces back to the
    kernel, which clears every page anew.  The process holds its largest step until it ends, which
    is what it needs anyway.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    max_mappings, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    return set_option is not None and bool(
        set_option(max_mappings, 0) and set_option(trim_threshold, -1)
    )


def compile_blocks(network: nn.Module) -> None:
    """Compile the repeated blocks in place; names of weights stay, and jvp passes run as before.

    All blocks, and passes on other numbers of rows, share one program.  What is compiled is the
    forward function of a block and not its call, so that the hooks which gather sharded weights
    stay outside.
    """
    # One program for each of: with gradient or without, trained or frozen, precision, many rows or
    # one; beyond the limit torch would go on uncompiled.
    settings = torch._dynamo.config
    limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    setattr(settings, limit, max(32, getattr(settings, limit)))  # the second name is torch 2.6's
    for block in blocks_of(network):
        block.forward = torch.compile(block.forward)
