"""The path between data and noise, the prediction target, and the flow map.

A transport is four functions of time.  With data x, noise z ~ N(0, I), t = 0 data, t = 1 noise:

    x_t = alpha x + sigma z                    the path
    F   = alpha_pred x + sigma_pred z          what the network regresses
    D   = sigma alpha_pred - alpha sigma_pred  never 0 on (0, 1)

so ``(x_t, F)`` is a 2x2 matrix times ``(x, z)``, and everything else is its algebra:

    x_hat = (sigma F - sigma_pred x_t) / D     z_hat = (alpha_pred x_t - alpha F) / D
    X(x_t; t->s) = A x_t + B F                 the flow map: alpha_s x_hat + sigma_s z_hat
    A = (sigma_s alpha_pred_t - alpha_s sigma_pred_t) / D_t
    B = (alpha_s sigma_t - sigma_s alpha_t) / D_t
    b = dB(t, s)/dt at s = t = (alpha sigma' - sigma alpha') / D
    v = alpha' x_hat + sigma' z_hat            the velocity dx_t/dt

A(t, t) = 1 and B(t, t) = 0, so the boundary condition of a consistency model needs no extra
parametrisation.  Only on the linear path is F the velocity.

Translation of the letters of UCGM (arXiv 2505.07447, section 3):

    paper            alpha(t)  gamma(t)  alpha_hat(t)  gamma_hat(t)
    here             sigma     alpha     sigma_pred    alpha_pred
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from ucgm.runtime.values import Range, check_values

HALF_PI = math.pi / 2


class Coefficients(NamedTuple):
    """The four functions of a transport at some times; each has the shape of ``t``."""

    alpha: Tensor
    sigma: Tensor
    alpha_pred: Tensor
    sigma_pred: Tensor

    @property
    def determinant(self) -> Tensor:
        """D = sigma alpha_pred - alpha sigma_pred."""
        return self.sigma * self.alpha_pred - self.alpha * self.sigma_pred


def expand(t: Tensor, like: Tensor) -> Tensor:
    """(B,) times with trailing unit axes, so that they broadcast over ``like`` (B, ...)."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


@dataclass(frozen=True)
class Transport:
    """Base of all transports: subclasses give :meth:`coefficients`, the algebra is here.

    Times are tensors of any shape; the methods that take states expect (B,) times with
    (B, ...) states.  To write your own path, return its four functions of t.
    """

    def __post_init__(self) -> None:
        check_values(self)

    def coefficients(self, t: Tensor) -> Coefficients:
        """The four functions at ``t``, of any shape."""
        raise NotImplementedError(f"{type(self).__name__} must define coefficients(t)")

    def _broadcast(self, t: Tensor, like: Tensor) -> Coefficients:
        return Coefficients(*(expand(c, like) for c in self.coefficients(t)))

    def mix(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha x + sigma z; x, z (B, ...), t (B,)."""
        c = self._broadcast(t, x)
        return c.alpha * x + c.sigma * z

    def target(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """F = alpha_pred x + sigma_pred z; x, z (B, ...), t (B,)."""
        c = self._broadcast(t, x)
        return c.alpha_pred * x + c.sigma_pred * z

    def split(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x_hat, z_hat) of a prediction F at (x_t, t); alpha x_hat + sigma z_hat = x_t."""
        c = self._broadcast(t, x_t)
        x_hat = (c.sigma * prediction - c.sigma_pred * x_t) / c.determinant
        z_hat = (c.alpha_pred * x_t - c.alpha * prediction) / c.determinant
        return x_hat, z_hat

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha', sigma') at ``t`` of any shape, by forward-mode differentiation."""
        return torch.func.jvp(lambda t: self.coefficients(t)[:2], (t,), (torch.ones_like(t),))[1]

    def velocity(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """v = alpha' x_hat + sigma' z_hat along the prediction; x_t, F (B, ...), t (B,)."""
        x_hat, z_hat = self.split(x_t, prediction, t)
        alpha_rate, sigma_rate = self.derivatives(t)
        return expand(alpha_rate, x_t) * x_hat + expand(sigma_rate, x_t) * z_hat

    def map(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(A, B) of the flow map from t to s, of the broadcast shape of ``t`` and ``s``.

        s = 0 < t means the data itself, so X = x_hat also on a path (EDM) whose first point is
        scaled and still carries a little noise.
        """
        at, to = self.coefficients(t), self.coefficients(s)
        to_data = (s == 0) & (t > 0)
        alpha_s = torch.where(to_data, torch.ones_like(to.alpha), to.alpha)
        sigma_s = torch.where(to_data, torch.zeros_like(to.sigma), to.sigma)
        # Where F says nothing (of the data, at the data) the state is kept.
        known = at.determinant != 0
        d = torch.where(known, at.determinant, 1.0)
        a = torch.where(known, (sigma_s * at.alpha_pred - alpha_s * at.sigma_pred) / d, 1.0)
        return a, (alpha_s * at.sigma - sigma_s * at.alpha) * known / d

    def jump(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """X(x_t; t->s) = A x_t + B F; x_t, F (B, ...), t, s (B,)."""
        a, b = self.map(t, s)
        return expand(a, x_t) * x_t + expand(b, x_t) * prediction

    def rate(self, t: Tensor) -> Tensor:
        """b(t), the speed of B(t, s) as t leaves s."""
        c = self.coefficients(t)
        alpha_rate, sigma_rate = self.derivatives(t)
        return (c.alpha * sigma_rate - c.sigma * alpha_rate) / c.determinant

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), any shape; +inf without noise, -inf without signal."""
        c = self.coefficients(t)
        return 2.0 * (c.alpha.log() - c.sigma.log())

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`, any shape, by bisection on [0, 1]; ends are clipped."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(60 if log_snr.dtype == torch.float64 else 30):
            middle = 0.5 * (low + high)
            cleaner = self.log_snr(middle) > log_snr
            low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
        return 0.5 * (low + high)


@dataclass(frozen=True)
class Linear(Transport):
    """Flow matching and rectified flow (arXiv 2210.02747, 2209.03003): F = z - x = dx_t/dt."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha = 1 - t, sigma = t."""
        one = torch.ones_like(t)
        return Coefficients(1.0 - t, t, -one, one)

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """t = 1 / (1 + exp(log_snr / 2))."""
        return torch.sigmoid(-0.5 * log_snr)


@dataclass(frozen=True)
class LoudLinear(Transport):
    """(1 - t) x + t noise z over noise (JiT at 512 pixels, arXiv 2511.13720): F = dx_t/dt."""

    noise: Annotated[float, Range(1e-3, 1e3)] = 2.0
    """standard deviation of the noise beside data in [-1, 1]."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha = (1 - t) / noise, sigma = t."""
        one = torch.ones_like(t)
        return Coefficients((1.0 - t) / self.noise, t, -one / self.noise, one)

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """t = 1 / (1 + noise exp(log_snr / 2))."""
        return torch.sigmoid(-0.5 * log_snr - math.log(self.noise))


@dataclass(frozen=True)
class Trig(Transport):
    """TrigFlow (sCM, arXiv 2410.11081, equation 6) with the angle pi t / 2 and unit data scale."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha = cos, sigma = sin, and F the derivative by the angle."""
        cos, sin = torch.cos(HALF_PI * t), torch.sin(HALF_PI * t)
        return Coefficients(cos, sin, -sin, cos)

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """t = atan(exp(-log_snr / 2)) / (pi / 2)."""
        return torch.atan(torch.exp(-0.5 * log_snr)) / HALF_PI


@dataclass(frozen=True)
class TrigLinear(Trig):
    """The trigonometric path with the linear path's prediction target (UCGM, arXiv 2505.07447)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha = cos, sigma = sin, F = z - x."""
        one = torch.ones_like(t)
        return Coefficients(torch.cos(HALF_PI * t), torch.sin(HALF_PI * t), -one, one)


@dataclass(frozen=True)
class EDM(Transport):
    """EDM's preconditioning as a transport (arXiv 2206.00364, table 1), times as in UCGM.

    n = exp(4 (2.68 t - 1.59)) runs from 0.0017 to 78; x_t is the noised sample times c_in, and F is
    the raw output of EDM's network: split() gives x_hat = c_skip x + c_out F of the unscaled x.
    """

    sigma_data: Annotated[float, Range(1e-3, 1e3)] = 0.5
    """standard deviation of the data."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """With r = sqrt(n^2 + sigma_data^2): 1/r, n/r, n/(sigma_data r), -sigma_data/r."""
        n = torch.exp(4.0 * (2.68 * t - 1.59))
        r = torch.sqrt(n**2 + self.sigma_data**2)
        return Coefficients(1.0 / r, n / r, n / (self.sigma_data * r), -self.sigma_data / r)

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log n."""
        return -8.0 * (2.68 * t - 1.59)

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """t = (1.59 - log_snr / 8) / 2.68, clipped to [0, 1]."""
        return ((1.59 - log_snr / 8.0) / 2.68).clamp(0.0, 1.0)


@dataclass(frozen=True)
class VP(Transport):
    """The variance-preserving path of DDPM in continuous time (arXiv 2011.13456, equation 33).

    alpha = exp(-t^2 19.9 / 4 - 0.1 t / 2); the network predicts the noise (``eps``), v = alpha z -
    sigma x (arXiv 2202.00512, appendix D), or the data (``x``).
    """

    prediction: Literal["eps", "v", "x"] = "eps"
    """what F is."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """The path, and the prediction in terms of data and noise."""
        log_alpha = -(t**2) * (19.9 / 4.0) - t * (0.1 / 2.0)
        alpha, sigma = torch.exp(log_alpha), torch.sqrt(-torch.expm1(2.0 * log_alpha))
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        predictions = {"eps": (zero, one), "v": (-sigma, alpha), "x": (one, zero)}
        return Coefficients(alpha, sigma, *predictions[self.prediction])

    def log_snr(self, t: Tensor) -> Tensor:
        """log alpha^2 - log(1 - alpha^2)."""
        twice = -(t**2) * (19.9 / 2.0) - t * 0.1
        return twice - torch.log(-torch.expm1(twice))

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """Root of 9.95 t^2 + 0.1 t = log(1 + exp(-log_snr)), clipped to [0, 1]."""
        c = torch.nn.functional.softplus(-log_snr)
        return ((torch.sqrt(0.1**2 + 4.0 * 9.95 * c) - 0.1) / (2.0 * 9.95)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class Random(Transport):
    """UCGM's ablation: four functions that belong together in no way (arXiv 2505.07447)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """alpha = 1 - t, sigma = sin(pi t / 2), F = z - (1 + exp(-5 t)) x."""
        one = torch.ones_like(t)
        return Coefficients(1.0 - t, torch.sin(HALF_PI * t), -1.0 - torch.exp(-5.0 * t), one)


@dataclass(frozen=True)
class XPrediction(Transport):
    """Any path with a network that predicts the data: F = x_hat."""

    path: Transport = Linear()
    """gives alpha and sigma."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """The path's alpha and sigma; F = x."""
        c = self.path.coefficients(t)
        return Coefficients(c.alpha, c.sigma, torch.ones_like(t), torch.zeros_like(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """That of the path."""
        return self.path.log_snr(t)

    def time_at_log_snr(self, log_snr: Tensor) -> Tensor:
        """That of the path."""
        return self.path.time_at_log_snr(log_snr)
