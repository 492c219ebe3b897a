"""Network passes: which module runs, on which rows, in which precision, under which dropout mask.

Every evaluation of a network during training goes through :class:`Passes`, so passes can be
counted, the one that carries the gradient goes through the wrapper of data-parallel training
(whose hooks it needs) and all others through the bare module.

A pass of a sharded network is a collective: its processes must all make it or all leave it, and
each has other rows.  Such a network says with ``network.any_rank(condition)`` whether a condition
holds on any process; one that has no rows of its own for the pass takes its first row along and
forgets the result.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ucgm.objective.draw import Draw

Network = Callable[..., Tensor]

# Values of x in a slice of a pass without gradient on a CPU (8 rows of 4x32x32): activations of a
# whole batch beside the graph of the gradient would be new pages every time, a sixth of the pass.
_SLICE = 1 << 15


def bare(network: Network) -> Network:
    """The module inside a DistributedDataParallel-like wrapper, or the network itself."""
    return getattr(network, "module", network)


def _has_active_dropout(network: Network) -> bool:
    if not isinstance(network, nn.Module):
        return False
    dropout = nn.modules.dropout._DropoutNd
    return any(isinstance(m, dropout) and m.training and m.p > 0 for m in network.modules())


class Passes:
    """The passes of one step over one complete :class:`Draw`.

    With active dropout every pass of the step replays the random state of the first, so all
    passes of a sample see one mask and the global generator advances once; passes are then made
    for all rows, because a mask drawn for fewer rows would be another one.

    Attributes:
        rows: rows evaluated so far, by kind: with gradient, forward only, with a tangent.
    """

    def __init__(self, network: Network, draw: Draw, two_time: bool) -> None:
        self.network = network
        self.draw = draw
        self.two_time = two_time
        self.rows = {"gradient": 0, "forward": 0, "tangent": 0}
        self.tangent = False
        self.whole = _has_active_dropout(network)
        self.sharded = hasattr(network, "any_rank")
        self.any_rank: Callable[[bool], bool] = getattr(network, "any_rank", bool)
        self._state: tuple[Tensor, Tensor | None] | None = None
        # F of the trained network at s = t on the rows that move, when a method goes along it.
        self.velocity: Tensor | None = None
        # TwinFlow tells the network's own samples by the sign of their times.
        self.sign: Tensor | None = None
        if draw.twin is not None:
            own = (draw.twin.part == 3).to(draw.t.device, non_blocking=True)
            self.sign = torch.where(own, -1.0, 1.0).to(draw.t)

    def _rng_state(self) -> tuple[Tensor, Tensor | None]:
        device = self.draw.x.device
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return torch.get_rng_state(), cuda

    def _replay(self) -> None:
        """The random state of the first pass, for every later one."""
        if not self.whole:
            return
        if self._state is None:
            self._state = self._rng_state()
            return
        torch.set_rng_state(self._state[0])
        if self._state[1] is not None:
            torch.cuda.set_rng_state(self._state[1], self.draw.x.device)

    def index(self, rows: Tensor) -> Tensor | None:
        """Indices (R,) on the device of a CPU row mask (B,); None: all rows."""
        if self.whole or bool(rows.all()):
            return None
        return rows.nonzero().flatten().to(self.draw.x.device, non_blocking=True)

    def anywhere(self, rows: Tensor) -> bool:
        """Whether a pass for ``rows`` (B,), a CPU mask, is made: for rows of this process, or
        others.
        """
        return self.any_rank(bool(rows.any()))

    def call(
        self,
        network: Network,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        s: Tensor,
        index: Tensor | None = None,
        signed: bool = True,
    ) -> Tensor:
        """One pass for rows that are already selected; full precision, whatever the autocast.

        Args:
            network: what to call.
            x: (R, ...) states.
            t: (R,) times.
            y: (R,) labels.
            s: (R,) destinations; they reach networks with a second time only.
            index: which rows of the draw these are; None: all.
            signed: give own samples of TwinFlow their negative times.
        """
        kind = "gradient" if torch.is_grad_enabled() else "tangent" if self.tangent else "forward"
        self.rows[kind] += len(x)
        self._replay()
        extra: dict[str, Any] = {}
        if self.draw.guidance is not None:
            extra["guidance"] = take(self.draw.guidance, index)
        if self.sign is not None and signed:
            sign = take(self.sign, index)
            t, s = sign * t, sign * s
        inputs = (x, t, y, s) if self.two_time else (x, t, y)
        rows = max(1, _SLICE // x[0].numel()) if len(x) else 1
        sliced = kind == "forward" and x.device.type == "cpu" and len(x) > rows
        if self.whole or self.sharded or not sliced:
            return full_precision(network(*inputs, **extra))
        slices = [slice(i, i + rows) for i in range(0, len(x), rows)]
        parts = [
            network(*(take(v, k) for v in inputs), **{n: take(v, k) for n, v in extra.items()})
            for k in slices
        ]
        return full_precision(torch.cat(parts))

    def gradient(self, x: Tensor, t: Tensor, y: Tensor | None, s: Tensor) -> Tensor:
        """The pass (B, ...) that carries the gradient, through the wrapper, in the ambient
        precision.
        """
        return self.call(self.network, x, t, y, s)

    def on_rows(
        self,
        network: Network,
        rows: Tensor,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        s: Tensor,
    ) -> Tensor:
        """A pass (B, ...) of the bare network for ``rows`` (B,), a CPU mask; 0 on the others."""
        if not self.anywhere(rows):
            return torch.zeros_like(x)
        index = self.index(stand_in(rows))
        part = self.call(
            bare(network), take(x, index), take(t, index), take(y, index), take(s, index), index
        )
        return put(torch.zeros_like(x), index, part) if bool(rows.any()) else torch.zeros_like(x)


def stand_in(rows: Tensor) -> Tensor:
    """The mask ``rows`` (B,), or the first row where it is empty."""
    return rows if bool(rows.any()) else torch.arange(len(rows)) == 0


def take(x: Any, index: Tensor | slice | None) -> Any:
    """Rows ``index`` (R,) of a tensor (B, ...); all for None, None for None."""
    return x if x is None or index is None else x[index]


def put(x: Tensor, index: Tensor | None, part: Tensor) -> Tensor:
    """``x`` (B, ...) with rows ``index`` (R,) replaced by ``part`` (R, ...); all for None."""
    return part.to(x.dtype) if index is None else x.index_copy(0, index, part.to(x.dtype))


def full_precision(x: Tensor) -> Tensor:
    """float32 unless already float64, any shape: no residual is formed in half precision."""
    return x if x.dtype == torch.float64 else x.float()
