"""Steps that are not taken: a loss or gradient that is not finite changes no weight.

Whether it is finite is known on the device, and the host does not wait for it.  The norm of the
gradient carries it: a loss that is not finite makes every gradient NaN (:func:`poison_gradients`),
the mean over processes hands a NaN to all of them, and so all decide alike.  The optimizers take
the decision as ``found_inf``, the averages as a factor of their weight, and the counts stay on the
device until they are read for the log.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ucgm.runtime.sharding import local_shard
from ucgm.training.ema import EMA


def poison_gradients(loss: Tensor) -> Tensor:
    """The same scalar loss, whose gradients are all NaN where it is not finite."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scale all gradients so that their norm is at most ``limit``, where there is one.

    Returns:
        the norm before, a float32 scalar on the device, alike on every process.
    """
    found = [p.grad for p in parameters if p.grad is not None]
    gradients = [local_shard(g) for g in found]
    norm = torch.nn.utils.get_total_norm(gradients)
    if isinstance(found[0], DTensor):
        norm = norm.square()
        torch.distributed.all_reduce(norm)
        norm = norm.sqrt()
    if limit is not None:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


class NonFiniteSkipper:
    """Takes optimizer steps, or skips and counts them; the counts live on ``device``."""

    def __init__(self, device: torch.device) -> None:
        # skipped in all, skipped in a row, and the last step that was skipped
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        averages: Iterable[EMA],
        norm: Tensor,
        number: int,
    ) -> Tensor:
        """Step and average if ``norm`` is finite; returns whether, a scalar on the device.

        ``norm`` is a scalar, that of all gradients; ``number`` counts the optimizer steps.
        """
        taken = torch.isfinite(norm)
        optimizer.found_inf = (~taken).float()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        for average in averages:
            average.update(taken)
        total, row, last = self._counts.unbind()
        bad = ~taken
        total += bad
        row.add_(1).mul_(bad)
        last.copy_(torch.where(bad, number, last))
        return taken

    def read(self) -> tuple[int, int, int]:
        """Steps skipped in all and in a row, and the number of the last; waits for the device."""
        total, row, last = self._counts.tolist()
        return total, row, last

    def restore(self, total: int, row: int) -> None:
        """The counts of a checkpoint."""
        self._counts.copy_(torch.tensor([total, row, 0]))
