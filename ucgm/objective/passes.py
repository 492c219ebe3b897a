"""Network passes: which module runs, on which rows, in which precision, under which dropout mask.

Every evaluation of a network during training goes through :class:`Passes`, so passes can be
counted, the one that carries the gradient goes through the wrapper of data-parallel training
(whose hooks it needs) and all others through the bare module.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ucgm.objective.draw import Draw

Network = Callable[..., Tensor]


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
        """Indices on the device of a CPU row mask; None: all rows."""
        if self.whole or bool(rows.all()):
            return None
        return rows.nonzero().flatten().to(self.draw.x.device, non_blocking=True)

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
        out = network(x, t, y, s, **extra) if self.two_time else network(x, t, y, **extra)
        return full_precision(out)

    def gradient(self, x: Tensor, t: Tensor, y: Tensor | None, s: Tensor) -> Tensor:
        """The pass that carries the gradient, through the wrapper, in the ambient precision."""
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
        """A pass of the bare network for ``rows`` (a CPU mask); the others' result is 0."""
        if not bool(rows.any()):
            return torch.zeros_like(x)
        index = self.index(rows)
        part = self.call(
            bare(network), take(x, index), take(t, index), take(y, index), take(s, index), index
        )
        return put(torch.zeros_like(x), index, part)


def take(x: Any, index: Tensor | None) -> Any:
    """Rows ``index`` of a tensor; all for None, None for None."""
    return x if x is None or index is None else x[index]


def put(x: Tensor, index: Tensor | None, part: Tensor) -> Tensor:
    """``x`` with rows ``index`` replaced by ``part``; all for None."""
    return part.to(x.dtype) if index is None else x.index_copy(0, index, part.to(x.dtype))


def full_precision(x: Tensor) -> Tensor:
    """float32 unless already float64: residuals and losses are never formed in half precision."""
    return x if x.dtype == torch.float64 else x.float()
