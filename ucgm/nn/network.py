"""The contract of every network, and the declared ways in which a public network differs from it.

Ours: `network(x_t, t, y, s=None) -> F`, t = 0 data, t = 1 noise. A class defines `native`, the
forward pass of the public architecture in its own time and sign; `forward` is

    F(x_t, t, y, s) = field(native(x_t, time(t), y, h)),    h = t - s,

with (time, field) chosen by the setting `convention`:

| convention | native time            | native output           | transport            |
|------------|------------------------|-------------------------|----------------------|
| ucgm       | t                      | F (noise - data)        | any; Linear in TiT, REPA |
| reversed   | 1 - t (0 is noise)     | -F (data - noise)       | Linear               |
| ddpm       | step k(t) of 0..999    | F = eps, maybe variance | VP(prediction="eps") |
| edm        | ln(sigma)/4 = 2.68 t - 1.59 | F of EDM           | EDM                  |

ddpm: DiT was trained on 1000 steps with beta_k = 1e-4 + k (0.02 - 1e-4)/999. k(t) is the real
index whose signal-to-noise ratio is that of the continuous VP path of our transport
(arXiv:2011.13456, beta 0.1 to 20): exp(-19.9 t^2/4 - 0.1 t/2) = sqrt(prod_{i<=k} (1 - beta_i)).
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ucgm.nn.embeddings import FixedTable, LabelEmbedder, ScalarEmbedder


class Orientation(nn.Module):
    """Convention "ucgm": the native network already speaks our time and sign."""

    keeps_variance = False
    """Whether `native` returns the learned variance beside the prediction."""

    def time(self, t: Tensor) -> Tensor:
        """Native time of our `t` (B,)."""
        return t

    def field(self, raw: Tensor) -> Tensor:
        """Our F of the native prediction, (B, C, H, W)."""
        return raw


class Reversed(Orientation):
    """Convention "reversed": native time 0 is noise, the native velocity is data - noise."""

    def time(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def field(self, raw: Tensor) -> Tensor:
        """-raw."""
        return -raw


class StepTimes(FixedTable):
    """Time t of the VP path with the signal level of each of the 1000 training steps, (1000,)."""

    def compute(self) -> Tensor:
        """Solve 19.9 t^2/4 + 0.1 t/2 = -ln(alpha_k)."""
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device="cpu")
        minus_log_alpha = -0.5 * torch.log1p(-beta).cumsum(0)
        return (-0.05 + (0.0025 + 19.9 * minus_log_alpha).sqrt()) / 9.95


class DiscreteSteps(Orientation):
    """Convention "ddpm": native time is a step index, interpolated between training steps."""

    keeps_variance = True

    def __init__(self) -> None:
        super().__init__()
        self.steps = StepTimes()

    def time(self, t: Tensor) -> Tensor:
        """Index k in [0, 999], piecewise linear in t."""
        times = self.steps.table
        below = torch.searchsorted(times, t.detach().to(times.dtype).contiguous()).clamp(1, 999) - 1
        low, high = times[below], times[below + 1]
        return (below + (t - low) / (high - low)).clamp(0, 999)


class NoiseLevel(Orientation):
    """Convention "edm": native time is ln(sigma)/4."""

    def time(self, t: Tensor) -> Tensor:
        """2.68 t - 1.59."""
        return 2.68 * t - 1.59


CONVENTIONS: dict[str, type[Orientation]] = {
    "ucgm": Orientation,
    "reversed": Reversed,
    "ddpm": DiscreteSteps,
    "edm": NoiseLevel,
}


class Network(ModelMixin, ConfigMixin):
    """A network under the contract. Subclasses call `_setup` and define `native`."""

    _supports_gradient_checkpointing = True

    def _setup(
        self, shape: tuple[int, int, int], num_classes: int, convention: str, second_time: bool
    ) -> None:
        if convention not in CONVENTIONS:
            raise ValueError(
                f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}"
            )
        self.gradient_checkpointing = False
        self.shape, self.num_classes, self.second_time = shape, num_classes, second_time
        self.orientation = CONVENTIONS[convention]()

    def _embed(self, width: int, scale: float, max_period: float, guidance_input: bool) -> None:
        """Create the embedders; those of h and of the guidance start at zero output."""
        self.t_embedder = ScalarEmbedder(width, scale, max_period)
        self.y_embedder = LabelEmbedder(self.num_classes, width) if self.num_classes else None
        self.h_embedder = ScalarEmbedder(width, scale, max_period) if self.second_time else None
        self.g_embedder = ScalarEmbedder(width, 1.0, 10000.0) if guidance_input else None

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        s: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Predict F, (B, C, H, W).

        - `x_t`: noisy data (B, C, H, W).
        - `t`: times (B,) in [0, 1]; 0 is data, 1 is noise.
        - `y`: labels (B,) int64, num_classes = no label; ignored by an unconditional network.
        - `s`: destination times (B,) of a two-time network; None means s = t.
        - `guidance`: guidance scales (B,) >= 1; None means 1.
        """
        if x_t.shape[1:] != self.shape:
            raise ValueError(
                f"the network was built for data of shape (C, H, W) = {self.shape} "
                f"(in_channels, input_size), got {tuple(x_t.shape[1:])}"
            )
        if s is not None and not self.second_time:
            raise ValueError("this network has one time: build it with second_time=True to pass s")
        h = None if s is None else t - s
        raw = self.native(x_t, self.orientation.time(t), y, h, guidance)
        if raw.shape[1] != x_t.shape[1]:
            raw = raw[:, : x_t.shape[1]]
        return self.orientation.field(raw)

    def native(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Forward pass (B, C, H, W) of the public architecture, in its own time and sign."""
        raise NotImplementedError(f"{type(self).__name__} must define native")

    def embed_scalars(self, t: Tensor, h: Tensor | None, guidance: Tensor | None) -> Tensor:
        """Sum of the embeddings of native time, h = t - s and 1 - 1/guidance: (B, width)."""
        c = self.t_embedder(t)
        if self.h_embedder is not None:
            c = c + self.h_embedder(torch.zeros_like(t) if h is None else h)
        if self.g_embedder is not None:
            c = c + self.g_embedder(torch.zeros_like(t) if guidance is None else 1 - 1 / guidance)
        elif guidance is not None:
            raise ValueError("build the network with guidance_input=True to pass guidance")
        return c

    def require_labels(self, y: Tensor | None) -> Tensor:
        """Return `y` (B,), or raise for a class-conditional network without labels."""
        if y is None:
            raise ValueError(
                f"a class-conditional network needs y; pass y = {self.num_classes} "
                "(the null class) for no label"
            )
        return y

    def run(self, blocks: list[nn.Module] | nn.ModuleList, x: Tensor, *args: object) -> Tensor:
        """Pass `x` (B, N, D) through the blocks, recomputed in the backward pass if asked for."""
        recompute = self._gradient_checkpointing_func if self.gradient_checkpointing else None
        if recompute is None or not torch.is_grad_enabled():
            for block in blocks:
                x = block(x, *args)
        else:
            for block in blocks:
                x = recompute(block, x, *args)
        return x


@torch.no_grad()
def initialize(network: Network, zero: list[nn.Module]) -> None:
    """Xavier-uniform layers, normal embeddings (0.02); `zero` layers and second inputs at 0."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for module in network.modules():
        if isinstance(module, ScalarEmbedder):
            for layer in (module.mlp[0], module.mlp[2]):
                nn.init.normal_(cast(nn.Linear, layer).weight, std=0.02)
    second = [e.mlp[2] for e in (network.h_embedder, network.g_embedder) if e is not None]
    for layer in [*zero, *second]:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
