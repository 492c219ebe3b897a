"""Checkpoints of network, average and AdamW's moments of a DiT-S/2 (500 MiB).

A training waits for the copies alone: a thread writes them, with a SHA-256 of every file, which is
compared before anything is loaded.  Where that is part of a row, theirs has one too; torch.save
and torch.load alone take about half as long.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from timing import Pair

from ucgm.nn import DiTConfig
from ucgm.runs.checkpoint import load_weights, verify
from ucgm.runs.saving import (
    Writer,
    host_copies,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from ucgm.runtime.files import sha256, sync
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
    writer, path, digests = Writer(folder), folder / "plain.pt", []

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

    def plain():
        state = {"network": network, "ema": average.network, "optimizer": optimizer}
        torch.save({name: part.state_dict() for name, part in state.items()}, path)

    def plain_on_disk():
        plain()
        sync(path)
        digests.append(sha256(path))

    yield Pair("what a checkpoint holds up a training", "torch.save", host_states, plain)
    yield Pair(
        "a checkpoint with SHA-256, on the disk", "torch.save, fsync, SHA-256", save, plain_on_disk
    )

    checkpoint = folder / "checkpoints" / "step_0000001"

    def load():
        verify(checkpoint)
        load_weights(network, checkpoint / "network.safetensors")
        load_weights(average.network, checkpoint / "ema.safetensors")
        restore_optimizer(optimizer, names, checkpoint / "optimizer.safetensors")

    def plain_load():
        assert sha256(path) == digests[-1]
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state["network"])
        average.network.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])

    yield Pair("a checkpoint read again, checked", "torch.load, SHA-256", load, plain_load)
