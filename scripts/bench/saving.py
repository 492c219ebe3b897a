"""Checkpoints of network, average and AdamW's moments of a DiT-S/2 (500 MiB).

A training waits for the copies alone: a thread writes them, with a SHA-256 of every file, which is
compared before anything is loaded.  torch's own way of writing while the training goes on is
torch.distributed.checkpoint.async_save; where a digest is part of a row, theirs has one too.  A
plain torch.save and SHA-256, which makes no copies and lets the training wait, had all on the disk
in 0.55 of our time on an AMD EPYC, and in 0.94 on an Intel Xeon, where SHA-256 takes most of it.
"""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from timing import Pair
from torch.distributed.checkpoint import async_save

from ucgm.nn import DiTConfig
from ucgm.runs.checkpoint import load_weights, verify
from ucgm.runs.saving import (
    Writer,
    host_copies,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from ucgm.runtime.files import sha256
from ucgm.training.ema import EMA


def pairs(folder: Path, size: str = "S/2") -> Iterator[Pair]:
    """How long the training is held up, how long it takes to the disk, and reading it again."""
    network = DiTConfig(size=size).build((4, 32, 32), 1000)
    average = EMA(network, 0.999)
    names = {p: name for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(list(names), fused=True)
    for p in names:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    writer, path = Writer(folder), folder / "plain.pt"

    def host_states():
        values = {
            "network": network.state_dict(),
            "ema": average.network.state_dict(),
            "optimizer": optimizer_state(optimizer, names),
        }
        return {name: host_copies(state) for name, state in values.items()}

    def save():
        writer.submit(functools.partial(save_checkpoint, folder, 1, host_states(), {}, 1))
        writer.join()

    def states():
        values = {"network": network, "ema": average.network, "optimizer": optimizer}
        return {name: part.state_dict() for name, part in values.items()}

    def plain():
        torch.save(states(), path)

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    theirs, earlier = folder / "theirs", folder / "earlier"

    def torchs():
        if theirs.exists():
            theirs.rename(earlier)
        async_save(states(), checkpoint_id=theirs).result()  # it syncs its files
        for file in theirs.iterdir():
            sha256(file)
        shutil.rmtree(earlier, ignore_errors=True)

    yield Pair("what a checkpoint holds up a training", "torch.save", host_states, plain)
    yield Pair(
        "a checkpoint with SHA-256, on the disk", "torch's async_save, SHA-256", save, torchs
    )
    dist.destroy_process_group()
    save()
    plain()
    digest = sha256(path)

    checkpoint = folder / "checkpoints" / "step_0000001"

    def load():
        verify(checkpoint)
        load_weights(network, checkpoint / "network.safetensors")
        load_weights(average.network, checkpoint / "ema.safetensors")
        restore_optimizer(optimizer, names, checkpoint / "optimizer.safetensors")

    def plain_load():
        assert sha256(path) == digest
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        average.network.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])

    yield Pair("a checkpoint read again, checked", "torch.load, SHA-256", load, plain_load)
