"""Where the anchor m of the residual lies in [s, t].

The anchor is m = s + lambda (t - s): lambda = 0 is m = s, lambda = 1 the limit m -> t.  Some
methods move it with the progress p of the run, from 0 to 1:

    ect     the noise level nu = sigma / alpha of m is nu_t (1 - q^-(k+1) (1 + 8 sigmoid(-nu_t))),
            with q = 2 and k = floor(8 p) doublings (arXiv 2406.14548, section 4)
    alpha   lambda = 1 - a,  a falling from 1 to 0 along a sigmoid of p between the two shares of
            ``anchor_window`` (arXiv 2510.20771): a = 1 is flow matching, a = 0 MeanFlow
    soflow  lambda = 1 - r,  r = 0.1 (0.002 / 0.1)^p, and m <= t - 1e-4 (arXiv 2512.15657)
"""

import math

import torch
from torch import Tensor

from ucgm.objective.settings import ObjectiveSettings


def alpha_of_progress(progress: float, window: tuple[float, float] = (0.0, 1.0)) -> float:
    """AlphaFlow's a: a sigmoid of steepness 25 over the window, set to 1 and 0 within 0.005."""
    start, end = window
    if not start <= progress <= end:
        return 1.0 if progress < start else 0.0
    share = (progress - start) / max(end - start, 1e-9)
    a = 1.0 / (1.0 + math.exp(25.0 * (share - 0.5)))
    return 1.0 if a > 0.995 else 0.0 if a < 0.005 else a


def anchor(objective: ObjectiveSettings, t: Tensor, s: Tensor, progress: float) -> Tensor:
    """m in [s, t] for t, s (B,) at a share of the run; m = t stands for the limit m -> t.

    The tangent ``forward`` takes the limit by an anchor of its own, ``tangent_step`` before t.
    """
    schedule, ratio = objective.anchor_schedule, objective.consistency_ratio
    if schedule == "ect":
        transport = objective.transport
        level = torch.exp(-0.5 * transport.log_snr(t))
        shrink = 1.0 - 2.0 ** -(int(8 * min(progress, 0.999)) + 1) * (
            1.0 + 8.0 * torch.sigmoid(-level)
        )
        earlier = transport.time_at_log_snr(-2.0 * torch.log((level * shrink).clamp(min=1e-12)))
        m = torch.where(shrink > 0, torch.maximum(earlier, s), s)
    else:
        if schedule == "soflow":
            ratio = 1.0 - 0.1 * 0.02**progress
        elif schedule == "alpha":
            ratio = 1.0 - alpha_of_progress(progress, objective.anchor_window)
        m = t if ratio == 1.0 else s + ratio * (t - s)
        if schedule == "soflow":
            m = torch.maximum(torch.minimum(m, t - 1e-4), s)
        if objective.smallest_jump:
            m = torch.where(t - s <= 1.001 * objective.smallest_jump, s, m)
    if schedule == "ect" or ratio < 1.0:  # a gap below the last digit of t is none
        m = torch.where(m == t, s, m)
    if objective.tangent == "forward":
        m = torch.where(m == t, torch.maximum(t - objective.tangent_step, s), m)
    return m
