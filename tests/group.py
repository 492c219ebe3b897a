"""Groups of processes forked from the test, without the seconds that imports take."""

import multiprocessing
import os
import socket
import sys

import torch

from ucgm.runtime.processes import World


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _member(rank, size, port, target, args):
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=size)
    target(World(rank, size), *args)


def start(size, target, *args):
    """``size`` processes that call ``target(world, *args)``, which leaves the world at its end."""
    context, port = multiprocessing.get_context("fork"), free_port()
    processes = [
        context.Process(target=_member, args=(rank, size, port, target, args))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes):
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
