"""Weights spread over processes (FSDP2), for networks too large to be kept whole by each of them.

Process r of W keeps the r-th part of the rows (dimension 0) of every parameter, and with it of its
gradient, its moments and its averages.  A pass gathers one block after the other; the backward
pass hands every process the mean gradient of its own part.  Everything stays in float32, as
without sharding, and autocast decides what is computed in bfloat16: the numbers are those of
replicated weights up to rounding.

A pass is a collective: all processes have to make the same passes in the same order.  Which rows
need a pass is decided by numbers that differ between processes, so a sharded network has a method
``any_rank(condition)``, true where the condition holds on any of them, and
:class:`ucgm.objective.passes.Passes` asks it.

For a tensor that may be sharded, :func:`local_shard` is this process's part, a view;
:func:`gather` makes it whole on every process; :func:`load_shard` writes this process's part of a
whole tensor into it.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

_TIMEOUT = timedelta(hours=1)

T = TypeVar("T")


class Sharding:
    """How networks are placed on ``world`` processes, and what these agree on.

    Args:
        world: number of processes, those of the default process group.
        device: of this process.
        sharded: spread the networks; without effect in one process.
    """

    def __init__(self, world: int, device: torch.device, sharded: bool) -> None:
        self.device = device
        self.mesh = init_device_mesh(device.type, (world,)) if sharded and world > 1 else None
        # Decisions are made on the host, which must not wait for the device.
        self._group: Any = None
        if world > 1:
            self._group = torch.distributed.new_group(timeout=_TIMEOUT, backend="gloo")

    def any_rank(self, condition: bool) -> bool:
        """Whether ``condition`` holds on any process; all must call this."""
        if self._group is None:
            return condition
        flag = torch.tensor(int(condition))
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(flag)

    def broadcast_from_rank0(self, look: Callable[[], T]) -> T:
        """What ``look`` returns on the first process, on every process; all must call this.

        Raises:
            ValueError: which ``look`` raised, on every process.
        """
        if self._group is None:
            return look()
        answer: list[Any] = [None, None]
        if torch.distributed.get_rank() == 0:
            try:
                answer[0] = look()
            except ValueError as error:
                answer[1] = str(error)
        torch.distributed.broadcast_object_list(answer, src=0, group=self._group)
        if answer[1] is not None:
            raise ValueError(answer[1])
        return answer[0]

    @torch.no_grad()
    def copy_first(self, network: nn.Module) -> None:
        """Give a ``network`` on the host the weights of the first process; all must call this."""
        if self._group is not None:
            for value in network.state_dict().values():
                torch.distributed.broadcast(value, src=0, group=self._group)

    def place(self, network: nn.Module) -> nn.Module:
        """Move ``network`` to the device, whole or in parts; in place.

        Every process must hold the same weights.

        Raises:
            ValueError: a network that cannot be sharded.
        """
        if self.mesh is None:
            return network.to(self.device)
        if any(hasattr(module, "normalize_weights") for module in network.modules()):
            raise ValueError(
                f"{type(network).__name__} changes its weights in its forward pass, which a "
                "gathered copy would forget: set train.sharding: none"
            )
        for block in blocks_of(network):
            fully_shard(block, mesh=self.mesh)
        # The outermost parameters too are dropped after a pass: those of an average change
        # between two passes, and a gathered copy would be stale.
        fully_shard(network, mesh=self.mesh, reshard_after_forward=True)
        network.any_rank = self.any_rank  # pyright: ignore[reportArgumentType]
        return network


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network, by the class names it declares."""
    names = set(getattr(network, "_no_split_modules", None) or ())
    # A sharded block has a class of its own, derived from the one it had.
    return [m for m in network.modules() if names & {c.__name__ for c in type(m).__mro__}]


def local_shard(tensor: Tensor) -> Tensor:
    """The part of this process, of any shape; shares memory with ``tensor``."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(tensor: Tensor) -> Tensor:
    """The whole tensor, of any shape; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class _RowsOfAll(torch.autograd.Function):
    """Rows of every process; the gradient of its own counts once for each of them, as the mean of
    gradients over processes will divide by their number.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, world: int) -> Tensor:
        """(world B, ...) of x (B, ...)."""
        ctx.place, ctx.world = slice(rank * len(x), (rank + 1) * len(x)), world
        parts = [torch.empty_like(x) for _ in range(world)]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Of x (B, ...)."""
        return gradients[0][ctx.place] * ctx.world, None, None


def rows_of_all(x: Tensor, rank: int, world: int) -> Tensor:
    """Rows (world B, ...) of x (B, ...) on every process, in the order of ranks, with gradient."""
    return x if world == 1 else _RowsOfAll.apply(x, rank, world)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def load_shard(tensor: Tensor, value: Tensor) -> None:
    """Overwrite ``tensor`` with its part of ``value``, the whole tensor of any shape."""
    if isinstance(tensor, DTensor):
        mesh = tensor.device_mesh
        rows = value.split(-(-len(value) // mesh.size()))
        rank = mesh.get_local_rank()
        value = rows[rank] if rank < len(rows) else value[:0]
    local_shard(tensor).copy_(value)
