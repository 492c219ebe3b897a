"""What the public code of each method computes, as formulas: diffusion, consistency, UCGM.

Nothing here uses ``ucgm``: these are the formulas that ``scripts/parity.py`` and the tests compare
every preset with (flow maps are in ``published_maps.py``).  They are in this project's clock, t = 0
data and t = 1 noise, and its signs, F = z - x on the linear path, whatever the clock of the public
code.  A network is called ``net(x, t, y)``, one of two times ``net(x, t, y, s)``, one that knows
its guidance ``net(x, t, y, s, guidance)``.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

Net = Callable[..., Any]


class Batch(NamedTuple):
    """The random numbers of a step.

    x, z: (B, ...) data and noise; t, s: (B,) times; y: (B,) labels, none of them dropped; dropped:
    (B,) bool; null: the label of dropped rows; guidance: (B,) or (B, 3) scale and interval; time:
    (B,) times of a separate flow-matching term; twin: more numbers of a TwinFlow batch.
    """

    x: Tensor
    z: Tensor
    t: Tensor
    s: Tensor
    y: Tensor
    dropped: Tensor
    null: int
    guidance: Any = None
    time: Any = None
    twin: Any = None

    @property
    def labels(self) -> Tensor:
        """(B,) labels, the null label on dropped rows."""
        return torch.where(self.dropped, self.null, self.y)

    @property
    def nulls(self) -> Tensor:
        """(B,) null labels."""
        return torch.full_like(self.y, self.null)

    @property
    def mixed(self) -> Tensor:
        """(B, ...) states of the linear path."""
        return (1 - wide(self.t)) * self.x + wide(self.t) * self.z

    @property
    def velocity(self) -> Tensor:
        """(B, ...) velocities of the linear path."""
        return self.z - self.x


class Published(NamedTuple):
    """target: (B, ...) what F is regressed on; rows: (B,) weighted losses, with gradient."""

    target: Tensor
    rows: Tensor

    @property
    def loss(self) -> Tensor:
        """Scalar, with gradient."""
        return self.rows.mean()


def wide(t: Tensor) -> Tensor:
    """(B, 1, 1, 1) of (B,)."""
    return t.reshape(-1, 1, 1, 1)


def mean_square(a: Tensor) -> Tensor:
    """(B,) means over a sample of the squares of (B, ...)."""
    return a.square().flatten(1).mean(1)


def sum_square(a: Tensor) -> Tensor:
    """(B,) sums over a sample of the squares of (B, ...)."""
    return a.square().flatten(1).sum(1)


def adaptive(q: Tensor, power: float, epsilon: float) -> Tensor:
    """(B,) q over its own detached (q + epsilon)^power."""
    return q / (q.detach() + epsilon) ** power


def derivative(call: Net, at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Tensor:
    """Forward derivative of ``call`` at ``at``, without gradient."""
    return torch.func.jvp(call, at, along)[1].detach()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,) one minus the cosine over channels of (B, C, H, W), mean over positions; floor 1e-8."""
    return (1 - cosine_similarity(a, b, dim=1)).flatten(1).mean(1)


# ------------------------------------------------------------------------------------- diffusion


def vp(net: Net, b: Batch, prediction: str) -> Published:
    """Noise or v on the VP path (DDPM, arXiv 2006.11239; continuous as in arXiv 2011.13456)."""
    exponent = 0.25 * b.t**2 * (20.0 - 0.1) + 0.5 * b.t * 0.1
    signal = wide(torch.exp(-exponent))
    noise = (1 - signal**2).sqrt()
    target = b.z if prediction == "eps" else signal * b.z - noise * b.x
    return Published(target, mean_square(net(signal * b.x + noise * b.z, b.t, b.labels) - target))


def edm_level(t: Tensor) -> Tensor:
    """(B,) noise levels: the network's c_noise = ln(level) / 4 is 2.68 t - 1.59 here."""
    return torch.exp(4 * (2.68 * t - 1.59))


def denoiser(net: Net, noisy: Tensor, level: Tensor, y: Tensor, sd: float = 0.5) -> Tensor:
    """(B, ...) D(x; sigma) of EDM's preconditioning (arXiv 2206.00364, table 1)."""
    total = wide(level**2 + sd**2)
    t = (torch.log(level) / 4 + 1.59) / 2.68
    raw = net(noisy / total.sqrt(), t, y)
    return sd**2 / total * noisy + wide(level) * sd / total.sqrt() * raw


def raw_output(denoised: Tensor, noisy: Tensor, level: Tensor, sd: float = 0.5) -> Tensor:
    """(B, ...) the raw network output with which :func:`denoiser` gives ``denoised``."""
    total = wide(level**2 + sd**2)
    return (denoised - sd**2 / total * noisy) * total.sqrt() / (wide(level) * sd)


def edm(net: Net, b: Batch, log_variance: Net | None = None, sd: float = 0.5) -> Published:
    """EDM and, with a log-variance u, EDM2 (NVlabs/edm and edm2, loss.py).

    The public code sums over elements; this is the mean.
    """
    level = edm_level(b.t)
    noisy = b.x + wide(level) * b.z
    weight = (level**2 + sd**2) / (level * sd) ** 2
    rows = weight * mean_square(denoiser(net, noisy, level, b.labels, sd) - b.x)
    if log_variance is not None:
        u = log_variance(b.t, b.t)
        rows = rows / u.exp() + u
    return Published(raw_output(b.x, noisy, level, sd), rows)


def sit(net: Net, b: Batch, with_cosine: bool = False) -> Published:
    """SiT (willisma/SiT) and LightningDiT (hustvl): their time is 1 - t, their velocity -F."""
    tau = wide(1 - b.t)
    wanted = b.x - b.z
    said = -net(tau * b.x + (1 - tau) * b.z, b.t, b.labels)
    rows = mean_square(said - wanted)
    return Published(-wanted, rows + cosine(said, wanted) if with_cosine else rows)


def ot_cfm(net: Net, b: Batch) -> Published:
    """Minibatch optimal transport (atong01/conditional-flow-matching, torchcfm).

    The plan of two uniform batches of one size is a permutation; it is taken whole here, and rows
    are sampled from it with replacement there.
    """
    from scipy.optimize import linear_sum_assignment

    cost = (b.x[:, None] - b.z[None]).square().flatten(2).sum(2)
    order = torch.as_tensor(linear_sum_assignment(cost.numpy())[1])
    return sit(net, b._replace(z=b.z[order]))


# ------------------------------------------------------------------------------------------ UCGM


def ucgm(
    net: Net,
    b: Batch,
    ratio: float,
    zeta: float,
    uncond: Net | None = None,
    teacher: Net | None = None,
    interval: tuple[float, float] = (0.0, 0.75),
    huber: float = 0.0,
    with_cosine: bool = False,
    weight: bool = True,
    half_pi: float = math.pi / 2,
) -> Published:
    """UCGM-T on the linear path (LINs-lab/UCGM, methodes/unigen.py).

    Args:
        net: the trained network.
        b: the numbers.
        ratio: lambda.
        zeta: strength of enhancement; 0: plain data.
        uncond: the average, which gives the unconditional prediction at lambda = 0.
        teacher: the frozen network of lambda > 0.
        interval: open interval of t with enhancement.
        huber: c of the pseudo-Huber loss.
        with_cosine: add the cosine over channels.
        weight: weigh by cos(pi t / 2).
        half_pi: 1.57 in the public code.
    """
    t, y, xt = wide(b.t), b.labels, b.mixed
    f = net(xt, b.t, y)
    with torch.no_grad():
        field = b.velocity
        inside = wide((b.t > interval[0]) & (b.t < interval[1]))
        dropped = wide(b.dropped)
        if zeta and teacher is not None:
            reference = teacher(xt, b.t, y)
            enhanced = torch.where(
                inside, field + zeta * (reference - field), (field + reference) / 2
            )
            field = torch.where(dropped, field, enhanced)
        elif zeta and uncond is not None:
            null = uncond(xt, b.t, b.nulls)
            enhanced = torch.where(inside, field + zeta * (f - null), (field + f) / 2)
            field = torch.where(dropped, (field + null) / 2, enhanced)

        def arrival(time: Tensor) -> Tensor:
            """x_hat after moving along the field to ``time``."""
            state = xt + wide(time - b.t) * field
            return state - wide(time) * net(state, time, y)

        if ratio == 0.0:
            target = field
        else:
            if ratio == 1.0:
                late, early = b.t + 0.005, b.t - 0.005
                change = (arrival(late) - arrival(early)) / 0.01
            else:
                change = (xt - t * f - arrival(ratio * b.t)) / wide(b.t - ratio * b.t)
            target = f + 4 * t / torch.sin(t * half_pi) * change.clamp(-1, 1)
    rows = (mean_square(f - target) + huber**2).sqrt() - huber
    if with_cosine:
        rows = rows + cosine(f, target)
    return Published(target, rows * torch.cos(b.t * half_pi) if weight else rows)


# ----------------------------------------------------------------------------------- consistency


def ect_anchor(level: Tensor, doublings: int, q: float = 2.0, k: float = 8.0) -> Tensor:
    """(B,) noise levels of ect's anchors, 0 for data, of noise levels (B,)."""
    shrink = 1 - (1 + k * torch.sigmoid(-level)) / q ** (doublings + 1)
    return (level * shrink).clamp(min=0)


def ect(net: Net, b: Batch, doublings: int) -> Published:
    """Easy consistency tuning (locuslab/ect, training/loss.py) with its default c = 0.

    The anchor's level is n (1 - q^-(doublings + 1) (1 + k sigmoid(-n))); the loss is the norm of
    the difference of the two denoised images over the gap of the levels.
    """
    level = edm_level(b.t)
    earlier = ect_anchor(level, doublings)
    noisy = b.x + wide(level) * b.z
    said = denoiser(net, noisy, level, b.labels)
    with torch.no_grad():
        safe = torch.where(earlier > 0, earlier, 1.0)
        anchor = denoiser(net, b.x + wide(earlier) * b.z, safe, b.labels)
        anchor = torch.where(wide(earlier > 0), anchor, b.x)
    rows = sum_square(said - anchor).sqrt() / (level - earlier)
    return Published(raw_output(anchor, noisy, level), rows)


def scm(
    net: Net, b: Batch, log_variance: Net, warm: float, teacher: Net | None = None
) -> Published:
    """sCM on data of unit scale (arXiv 2410.11081, algorithm 1; NVlabs/FastGen, sCM.py).

    ``warm`` is the share of the tangent's warm-up that is done, ``teacher`` the field of sCD.
    """
    angle = b.t * math.pi / 2
    cos, sin = wide(angle.cos()), wide(angle.sin())
    xt, y = cos * b.x + sin * b.z, b.labels
    field = cos * b.z - sin * b.x if teacher is None else teacher(xt, b.t, y).detach()

    def by_angle(x: Tensor, a: Tensor) -> Tensor:
        return net(x, a / (math.pi / 2), y)

    product = cos * sin
    change = derivative(by_angle, (xt, angle), (product * field, product.flatten()))
    f = net(xt, b.t, y)
    tangent = -(cos**2) * (f.detach() - field) - warm * (product * xt + change)
    tangent = tangent / (wide(mean_square(tangent).sqrt()) + 0.1)
    target = f.detach() + tangent
    u = log_variance(b.t, b.t)
    return Published(target, mean_square(f - target) / u.exp() + u)


def jit(net_of_x: Net, b: Batch, least: float = 0.05) -> Published:
    """JiT (LTH14/JiT): the network says x, the loss is on velocities over max(t, ``least``)."""
    divisor = wide(b.t.clamp(min=least))
    wanted, said = ((b.mixed - x) / divisor for x in (b.x, net_of_x(b.mixed, b.t, b.labels)))
    return Published(wanted, mean_square(said - wanted))
