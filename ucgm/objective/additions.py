"""What some methods add to the residual: couplings, anchors, alignment, matching.

flow_anchor   a flow-matching term at s = t on the same rows (FACM, arXiv 2507.03738)
Alignment     features of the network follow those of an encoder (REPA, arXiv 2410.06940)
own_samples   TwinFlow's rows of the network's own samples, at negative time
matching      TwinFlow's term: fake minus real velocity as the gradient of the one-step sample
              (arXiv 2512.05150)
transported   minibatch optimal transport (arXiv 2302.00482, section 3.2)
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ucgm.objective.draw import Draw
from ucgm.objective.losses import power_loss
from ucgm.objective.passes import Network, Passes, bare, put, stand_in, take
from ucgm.objective.settings import ObjectiveSettings
from ucgm.objective.times import TwinFlowSplit
from ucgm.transport import expand


def transported(x: Tensor, z: Tensor) -> Tensor:
    """``z`` (B, ...) permuted so that the sum of |x - z|^2 over pairs is least; labels stay with x.

    The assignment is made on the host and within the given rows, so it depends on how the global
    batch is cut.
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x.flatten(1).double(), z.flatten(1).double()).square()
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return z[torch.as_tensor(order, device=z.device)]


def flow_anchor(
    objective: ObjectiveSettings, passes: Passes, x_t: Tensor
) -> tuple[Tensor, Tensor | None]:
    """(F at (t, s), F at (t, t) or None): with an anchor both come from one doubled pass."""
    draw = passes.draw
    assert draw.s is not None
    if not objective.flow_anchor:
        return passes.gradient(x_t, draw.t, draw.y, draw.s), None
    both = torch.arange(len(x_t), device=x_t.device).repeat(2)
    y = None if draw.y is None else draw.y[both]
    s = torch.cat((draw.s, draw.t))
    out = passes.call(passes.network, x_t[both], draw.t[both], y, s, both)
    prediction, at_t = out.chunk(2)
    return prediction, at_t


def own_samples(objective: ObjectiveSettings, passes: Passes) -> Draw:
    """The draw with the data of its own-sample rows replaced by one-step samples."""
    draw = passes.draw
    assert draw.twin is not None
    rows = draw.twin.part == 3
    if not passes.anywhere(rows):
        return draw
    index = stand_in(rows).nonzero().flatten().to(draw.x.device, non_blocking=True)
    z, y = draw.twin.source[index], take(draw.y, index)
    one, zero = torch.ones_like(draw.t[index]), torch.zeros_like(draw.t[index])
    with torch.no_grad():
        network = bare(passes.network)
        said = passes.call(network, z, one, y, zero, index, signed=False)
        samples = objective.transport.jump(z, said, one, zero)
    if not bool(rows.any()):
        return draw
    return replace(draw, x=put(draw.x, index, samples))


def matching_term(
    objective: ObjectiveSettings, passes: Passes, x_t: Tensor, prediction: Tensor
) -> Tensor:
    """Mean () over the one-step rows of |F - stopgrad(F - clamp(F_fake - F_real))|^2, powered.

    The sum is divided by the expected number of such rows, a quarter, and not by the number drawn:
    so the mean of several processes, which draw different numbers, is that of one.
    """
    draw, transport = passes.draw, objective.transport
    assert draw.twin is not None and draw.s is not None
    rows = draw.twin.part == 0
    if not passes.anywhere(rows):
        return prediction.sum() * 0.0
    index = stand_in(rows).nonzero().flatten().to(x_t.device, non_blocking=True)
    said, y, time = prediction[index], take(draw.y, index), draw.twin.time[index]
    with torch.no_grad():
        sample = transport.jump(x_t[index], said, draw.t[index], draw.s[index])
        again = transport.mix(sample, draw.twin.noise[index], time)
        network = bare(passes.network)
        fake, real = (
            passes.call(network, again, sign * time, y, sign * time, index, signed=False)
            for sign in (-1.0, 1.0)
        )
        wanted = said - (fake - real).clamp(-1.0, 1.0)
    if not bool(rows.any()):
        return prediction.sum() * 0.0
    error = said - wanted
    powered = power_loss(error, objective.loss_power, objective.loss_epsilon, False)
    return powered.sum() / (TwinFlowSplit.share * len(x_t))


class Alignment(nn.Module):
    """Representation alignment: tokens of one layer, projected, follow an encoder's features.

    Use: ``alignment.watch(network.blocks[7])`` once, then set ``alignment.features`` to the
    (B, N, D) features of the batch's images before each step.  The loss is minus the cosine.

    Args:
        width: width of the network's tokens.
        features: D.
        hidden: width of the projector.
    """

    def __init__(self, width: int, features: int, hidden: int = 2048) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, features),
        )
        self.features: Tensor | None = None
        self._tokens: Tensor | None = None

    def watch(self, layer: nn.Module) -> Any:
        """Record the tokens of ``layer`` at passes with gradient; returns the hook's handle."""

        def record(_: nn.Module, __: Any, output: Tensor) -> None:
            if torch.is_grad_enabled():
                self._tokens = output

        return layer.register_forward_hook(record)

    def loss(self) -> Tensor:
        """Minus the mean cosine between projected tokens and features."""
        if self.features is None or self._tokens is None:
            raise ValueError("alignment needs watch(layer), and features of the batch's images")
        projected = self.projector(self._tokens[: len(self.features)])
        features = self.features.to(projected)
        return -functional.cosine_similarity(projected, features, dim=-1).mean()


def terminal_velocity(
    objective: ObjectiveSettings, passes: Passes, second: Network, x_t: Tensor
) -> tuple[Tensor, Tensor]:
    """(F', F^-(X^-, s, s)), each (B, ...); (F, 0) on the rows with s = t.

    Args:
        objective: the settings.
        passes: makes the passes; the rows with s = t go through the wrapper of the network.
        second: network that says the velocity at the destination.
        x_t: (B, ...) states.
    """
    draw, host, transport = passes.draw, passes.draw.host, objective.transport
    assert host is not None and draw.s is not None
    moving = host.s < host.t
    resting = passes.index(~moving)
    x, t, y = (take(v, resting) for v in (x_t, draw.t, draw.y))
    said = put(torch.zeros_like(x_t), resting, passes.call(passes.network, x, t, y, t, resting))
    if not bool(moving.any()):
        return said, torch.zeros_like(x_t)
    index = passes.index(moving)
    x, t, s, y = (take(v, index) for v in (x_t, draw.t, draw.s, draw.y))
    # At s = 0 a jump ends at the data (Transport.map) and not on the path: no derivative there.
    s = s.clamp(min=1e-6)
    network = bare(passes.network)

    def jump(later: Tensor) -> Tensor:
        return transport.jump(x, passes.call(network, x, t, y, later, index), t, later)

    # A derivative, and the difference of two velocities, need float32.
    with torch.autocast(x.device.type, enabled=False):
        # Fused attention kernels have no forward-mode derivative.
        with sdpa_kernel(SDPBackend.MATH):
            arrived, rate = torch.func.jvp(jump, (s,), (torch.ones_like(s),))[:2]
        passes.rows["tangent"] += len(x)
        still = transport.velocity(arrived, torch.zeros_like(arrived), s)
        ended = (still - rate) / expand(transport.rate(s), x)
        with torch.no_grad():
            wanted = passes.call(bare(second), arrived.detach(), s, y, s, index)
    if index is None:  # every pass was made for all rows
        moves = expand(moving.to(x_t.device, non_blocking=True), x_t)
        return torch.where(moves, ended, said), wanted
    return put(said, index, ended), put(torch.zeros_like(x_t), index, wanted)
