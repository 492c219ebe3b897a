"""Network passes: which module runs, on which rows, in which precision, under which dropout mask.

Every evaluation of a network during training goes through :class:`Passes`, so the number of
passes per step can be counted, the pass that carries the gradient goes through the wrapper of
data-parallel training (whose hooks it needs) and all others through the bare module.
"""

from collections.abc import Callable

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
    """The passes of one step over one :class:`Draw`.

    With active dropout every pass of the step replays the random state of the first, so all
    passes of a sample see one mask and the global generator advances once; passes are then made
    for all rows, because a mask drawn for fewer rows would be another one.
    """

    def __init__(self, network: Network, draw: Draw, two_time: bool) -> None:
        self.network = network
        self.draw = draw
        self.two_time = two_time
        self.forwards = 0
        self.rows = 0
        self._replay = _has_active_dropout(network)
        self._state: tuple[Tensor, Tensor | None] | None = None

    def _rng_state(self) -> tuple[Tensor, Tensor | None]:
        device = self.draw.x.device
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return torch.get_rng_state(), cuda

    def _set_rng_state(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self.draw.x.device)

    def call(self, network: Network, x: Tensor, t: Tensor, y: Tensor | None, s: Tensor) -> Tensor:
        """One forward pass; ``s`` reaches networks with a second time only."""
        self.forwards += 1
        self.rows += len(x)
        if self._replay:
            if self._state is None:
                self._state = self._rng_state()
            else:
                self._set_rng_state(self._state)
        return network(x, t, y, s) if self.two_time else network(x, t, y)

    def gradient(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The pass that carries the gradient, through the wrapper, in the ambient precision."""
        return full_precision(self.call(self.network, x, t, self.draw.y, s))

    def online(self, x: Tensor, t: Tensor, y: Tensor | None, s: Tensor) -> Tensor:
        """The network being trained, on its bare module."""
        return full_precision(self.call(bare(self.network), x, t, y, s))

    def on_rows(
        self, network: Network, rows: Tensor, x: Tensor, t: Tensor, y: Tensor | None, s: Tensor
    ) -> Tensor:
        """A pass for ``rows`` (a CPU bool mask) alone; the other rows of the result are 0."""
        if bool(rows.all()) or self._replay:
            return full_precision(self.call(bare(network), x, t, y, s))
        result = torch.zeros_like(x)
        if bool(rows.any()):
            index = rows.nonzero().flatten().to(x.device, non_blocking=True)
            labels = None if y is None else y[index]
            part = self.call(bare(network), x[index], t[index], labels, s[index])
            result = result.index_copy(0, index, full_precision(part).to(result.dtype))
        return result


def full_precision(x: Tensor) -> Tensor:
    """float32 unless already float64: residuals and losses are never formed in half precision."""
    return x if x.dtype == torch.float64 else x.float()
