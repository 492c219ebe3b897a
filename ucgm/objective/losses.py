"""Losses of a prediction F against its target, and weights over time.

With q the mean (or sum) over a sample of the squared error:

    power         q stopgrad[(q + eps)^-p]   p = 0: squared error; 1: MeanFlow's adaptive weight
    pseudo-Huber  sqrt(q + c^2) - c          (arXiv 2310.14189, equation 7)

p = 1/2 with eps = c^2 has twice the gradient of pseudo-Huber.  p > 0 has a minimiser that is not
the conditional mean when the noise of the target is skewed, so plain flow matching uses p = 0.  At
c = 0 pseudo-Huber is the root of the mean squared error, without a gradient at a residual of 0.

Two more terms are optional: 1 - cos(F, F_tgt) over channels, averaged over positions (LightningDiT,
arXiv 2501.01423, section 4), and a learned log-variance u(t), loss exp(-u) + u (EDM2, arXiv
2312.02696, equation 21).  The norms in the cosine have a floor: its gradient at an output of zero,
where every DiT starts, is one over it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ucgm.objective.draw import Draw
from ucgm.objective.settings import ObjectiveSettings
from ucgm.transport import HALF_PI


def mean_flat(x: Tensor) -> Tensor:
    """(B,) mean of x (B, ...) over all axes but the first."""
    return x.flatten(1).mean(1)


def power_loss(error: Tensor, power: float, epsilon: float, total: bool) -> Tensor:
    """(B,) q stopgrad[(q + epsilon)^-power]; q is the sum over a sample with ``total``."""
    q = error.flatten(1).square().sum(1) if total else mean_flat(error.square())
    return q if power == 0.0 else q * (q.detach() + epsilon).pow(-power)


def pseudo_huber_loss(error: Tensor, c: float, total: bool) -> Tensor:
    """(B,) sqrt(q + c^2) - c, q the mean of the squares over a sample; with ``total`` their sum."""
    q = error.flatten(1).square().sum(1) if total else mean_flat(error.square())
    # Below the smallest number the root has no gradient, and needs none.
    return torch.sqrt((q + c**2).clamp(min=1e-30)) - c


def cosine_loss(prediction: Tensor, target: Tensor, floor: float) -> Tensor:
    """(B,) one minus the cosine over channels, averaged over positions.

    Over one channel the cosine is a sign: it has a value and no gradient.

    Args:
        prediction: (B, C, H, W) F.
        target: (B, C, H, W) F_tgt.
        floor: norms over the channels count as at least this.
    """
    if prediction.shape[1] == 1:
        prediction = prediction.detach()
    return mean_flat(1.0 - functional.cosine_similarity(prediction, target, dim=1, eps=floor))


def per_sample_loss(objective: ObjectiveSettings, prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) unweighted losses of F against F_tgt, each (B, ...)."""
    error = prediction - target
    if objective.pseudo_huber_c is not None:
        loss = pseudo_huber_loss(error, objective.pseudo_huber_c, objective.loss_sum)
    else:
        power, epsilon = objective.loss_power, objective.loss_epsilon
        loss = power_loss(error, power, epsilon, objective.loss_sum)
    if not objective.cosine_loss:
        return loss
    cosine = cosine_loss(prediction, target, objective.cosine_floor)
    if not objective.cosine_powered:
        return loss + cosine
    total = mean_flat(error.square()) + cosine
    return total * (total.detach() + objective.loss_epsilon).pow(-objective.loss_power)


def time_weight(objective: ObjectiveSettings, t: Tensor, s: Tensor, m: Tensor) -> Tensor:
    """(B,) weights of the rows.

    cosine: cos(pi t / 2) (UCGM); sine: sin(pi t / 2) (FACM); gap: B(t, s)^2 / (nu_t - nu_m), or
    abs(B) in place of its square with a pseudo-Huber loss: the loss of X over the gap of noise
    levels (ECT), and 1 where there is none; share: (t - m) / (t - s), 1 at m = t (AlphaFlow);
    twinflow: tan((1 - (t - s)) pi / 2.5) + 1, and 1 where s = t; half: 1/2 where s < t (SoFlow);
    tan: 1 / sqrt(tan t - tan s + 1) (TiM).
    """
    name, transport = objective.time_weight, objective.transport
    if name is None:
        return torch.ones_like(t)
    if name == "half":
        return torch.where(s < t, 0.5, 1.0).to(t)
    if name == "tan":
        return (torch.tan(t) - torch.tan(s) + 1.0).rsqrt()
    if name == "cosine":
        return torch.cos(HALF_PI * t)
    if name == "sine":
        return torch.sin(HALF_PI * t)
    if name == "twinflow":
        rising = torch.tan((1.0 - (t - s)) * (math.pi / 2.5)) + 1.0
        return torch.where(t > s, rising, torch.ones_like(t))
    if name == "share":
        return torch.where(t > m, (t - m) / (t - s).clamp(min=1e-12), torch.ones_like(t))
    level_t, level_m = (torch.exp(-0.5 * transport.log_snr(v)) for v in (t, m))
    gap = level_t - torch.where(m > 0, level_m, 0.0)
    there = gap > 0
    power = 2 if objective.pseudo_huber_c is None else 1
    ratio = transport.map(t, s)[1].abs() ** power / torch.where(there, gap, 1.0)
    return torch.where(there, ratio, torch.ones_like(t))


class LogVariance(nn.Module):
    """u(t) or u(t, s): a linear map of random Fourier features, zero at the start (EDM2, app. B.1).

    Args:
        features: number of Fourier features of a time.
        two_time: of t and s; t alone otherwise.  The residual of a flow map may vanish, and u would
            fall without end: it stays within sqrt(features), as by the unit weights of LSD's code.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int = 128, two_time: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        frequencies = 2.0 * torch.pi * torch.randn(features, generator=generator)
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("phases", 2.0 * torch.pi * torch.rand(features, generator=generator))
        self.two_time = two_time
        self.linear = nn.Linear(features * (1 + two_time), 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        """(B,) log-variances at the times t, s (B,)."""
        times = torch.stack((t, s) if self.two_time else (t,), 1).to(self.frequencies)
        waves = torch.cos(times[:, :, None] * self.frequencies + self.phases).flatten(1)
        u = self.linear(waves * math.sqrt(2.0 / waves.shape[1]))[:, 0]
        bound = math.sqrt(len(self.frequencies))
        return bound * torch.tanh(u / bound) if self.two_time else u


def over_scale(objective: ObjectiveSettings, rows: Tensor, draw: Draw) -> Tensor:
    """Losses (B,) over the squares of the rows' guidance scales, where the settings say so."""
    if not objective.over_scale or draw.guidance is None:
        return rows
    scale = draw.guidance if draw.guidance.ndim == 1 else draw.guidance[:, 0]
    return rows / scale.square()


def weighted_mean(
    objective: ObjectiveSettings, per_sample: Tensor, draw: Draw, log_variance: LogVariance | None
) -> Tensor:
    """Scalar mean of the losses (B,), weighted over time and by the learned variance.

    Raises:
        ValueError: the objective learns a variance, and there is no module for it.
    """
    assert draw.s is not None and draw.m is not None
    weight = time_weight(objective, draw.t, draw.s, draw.m)
    rows = over_scale(objective, weight * per_sample, draw)
    if objective.log_variance:
        if log_variance is None:
            raise ValueError("objective.log_variance needs a LogVariance module")
        u = log_variance(draw.t, draw.s)
        rows = rows * torch.exp(-u)
        rows = (rows if objective.log_loss is None else torch.log(rows + objective.log_loss)) + u
    return rows.mean()
