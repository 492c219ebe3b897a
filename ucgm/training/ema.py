"""Averages of the weights over a training, in float32, on the device, with foreach kernels.

    ema <- ema + (1 - decay_n) (weights - ema)        at update n = 1, 2, ...

    constant   decay_n = decay
    warm-up    decay_n = min(decay, n / (9 + n)), which keeps early weights from lingering
    power      decay_n = (1 - 1/n)^(gamma + 1)        (EDM2, arXiv 2312.02696, equation 10)

Under the power rule the share of the weights of update k in the average after update n is

    p_n(k) = (k^(gamma+1) - (k-1)^(gamma+1)) / n^(gamma+1),    k = 1..n,

which keeps its shape as n grows: the average is as long in proportion at every moment.  Its length
is the standard deviation of the peak's profile over the length of the run, for long runs

    std = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))          (EDM2, equation 11)

and std = 0.05 and 0.10 are gamma = 16.97 and 6.94.  Snapshots of two such averages are enough to
make that of another length afterwards (:mod:`ucgm.runs.averages`).

Whether a step was taken is known on the device only, so the number of updates lives there too, and
averages of a sharded network are updated part by part, each process its own.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ucgm.runs.settings import power_exponent
from ucgm.runtime.sharding import local_shard


class EMA:
    """A frozen copy of a network that follows it.

    Args:
        network: what is followed; it may be sharded after this, as long as ``place`` does the same.
        decay: of the constant rule, and the limit of the warm-up.
        warmup: start with a small decay.
        std: relative length of the power rule, in place of the two above.
        place: puts the copy where it belongs, for example in parts on several processes; None: it
            stays beside the network.

    Attributes:
        network: the averaged network, in evaluation mode, without gradients.
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float,
        warmup: bool = True,
        std: float | None = None,
        place: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        copied = frozen_copy(network).float()
        self.network = copied if place is None else place(copied)
        self.decay = decay
        self.warmup = warmup
        self.exponent = None if std is None else power_exponent(std)
        self._followed = network
        self._pairs: tuple[list[nn.Parameter], list[nn.Parameter]] | None = None
        device = next((p.device for p in self.network.parameters()), None)
        self._updates = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def updates(self) -> int:
        """Number of updates so far; it decides the decay, and reading it waits for the device."""
        return int(self._updates)

    @updates.setter
    def updates(self, number: int) -> None:
        self._updates.fill_(number)

    def weight(self) -> Tensor:
        """1 - decay of the next update, a float32 scalar on the device.

        Logarithms keep the small difference of the power rule exact in float32.
        """
        n = self._updates.float()
        if self.exponent is not None:
            return -torch.expm1((self.exponent + 1.0) * torch.log1p(-1.0 / (n + 1.0)))
        weight = torch.full_like(n, 1.0 - self.decay)
        return torch.maximum(weight, 9.0 / (10.0 + n)) if self.warmup else weight

    @torch.no_grad()
    def update(self, taken: Tensor | None = None) -> None:
        """Follow the network by one optimizer step.

        Args:
            taken: scalar bool on the device, whether the step was taken; None: it was.  An update
                that is not taken leaves the weights bit for bit, and the host does not wait.
        """
        if self._pairs is None:
            self._pairs = list(self.network.parameters()), list(self._followed.parameters())
        average, source = ([local_shard(p.detach()) for p in part] for part in self._pairs)
        weight = self.weight()
        if taken is not None:
            weight = weight * taken
        # One weight for every tensor: a scalar argument would have to come to the host.
        torch._foreach_lerp_(average, [p.float() for p in source], [weight] * len(source))
        buffers = zip(self.network.buffers(), self._followed.buffers(), strict=True)
        for mine, theirs in buffers:
            mine.copy_(theirs)
        self._updates += 1 if taken is None else taken


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters take no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)
