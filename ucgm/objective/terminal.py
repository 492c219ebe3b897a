"""Terminal velocity: the flow map is matched at its destination (TVM, arXiv 2511.19797).

The residual of :mod:`ucgm.objective.residual` moves the start of a jump X(x_t; t->s).  This one
moves its end: along the flow, the end of a jump has the velocity of the point it has reached,

    dX/ds (x_t; t->s) = v(X, s),    v = alpha' x* + sigma' z*  of  F^-(X^-, s, s)

Both sides are affine in an F at (X, s), so the comparison is made there, and every loss applies:

    F' = (v(X; F = 0) - dX/ds) / b(s)       dX/ds = A' x_t + B' F + B dF/ds, with gradient
    F' = F at s = t, where the field is the target: flow matching, no derivative

The gradient goes through dF/ds, a forward derivative that is then differentiated backward.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ucgm.objective.passes import Network, Passes, bare, put, take
from ucgm.objective.settings import ObjectiveSettings
from ucgm.transport import expand


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
