"""The contract of every network, and the declared ways in which a public network differs from it.

Ours: `network(x_t, t, y, s=None) -> F`, t = 0 data, t = 1 noise. A class defines `native`, the
forward pass of the public architecture in its own time and sign; `forward` is

    F(x_t, t, y, s) = field(native(x_t, time(t), y, h), x_t, t),    h = t - s,

with (time, field) chosen by the setting `convention`:

| convention | native time            | native output           | transport            |
|------------|------------------------|-------------------------|----------------------|
| ucgm       | t                      | F (noise - data)        | any; Linear in TiT, REPA |
| reversed   | 1 - t (0 is noise)     | -F (data - noise)       | Linear               |
| ddpm       | step k(t) of 0..999    | F = eps, maybe variance | VP(prediction="eps") |
| edm        | ln(sigma)/4 = 2.68 t - 1.59 | F of EDM           | EDM                  |
| jit        | 1 - t (0 is noise)     | x; F = (x_t - x/n)/max(t, 0.05) | Linear; LoudLinear(n) |
| clean      | t                      | as of jit               | Linear; LoudLinear(n) |

ddpm: DiT was trained on 1000 steps with beta_k = 1e-4 + k (0.02 - 1e-4)/999. k(t) is the real
index whose signal-to-noise ratio is that of the continuous VP path of our transport
(arXiv:2011.13456, beta 0.1 to 20): exp(-19.9 t^2/4 - 0.1 t/2) = sqrt(prod_{i<=k} (1 - beta_i)).
jit, clean: the network says the data (JiT, arXiv:2511.13720; RAEv2, arXiv:2605.18324) and is
trained as any other, from scratch.
With `noise_scale` n its input is n x_t: the public network sees (1 - t) x + t n z.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ucgm.nn.embeddings import FixedTable

CONVENTIONS = ("ucgm", "reversed", "ddpm", "edm", "jit", "clean")


class DiscreteSteps(FixedTable):
    """Native time of "ddpm": a step index, interpolated between training steps.

    The table (1000,) is the time t of the VP path with the signal level of each training step.
    """

    def compute(self) -> Tensor:
        """Solve 19.9 t^2/4 + 0.1 t/2 = -ln(alpha_k)."""
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device="cpu")
        minus_log_alpha = -0.5 * torch.log1p(-beta).cumsum(0)
        return (-0.05 + (0.0025 + 19.9 * minus_log_alpha).sqrt()) / 9.95

    def forward(self, t: Tensor) -> Tensor:
        """Index k in [0, 999] of `t` (B,), piecewise linear."""
        times = self.table
        below = torch.searchsorted(times, t.detach().to(times.dtype).contiguous()).clamp(1, 999) - 1
        low, high = times[below], times[below + 1]
        return (below + (t - low) / (high - low)).clamp(0, 999)


ADDED = ("h_embedder.", "h_fourier.", "h_noise.", "h_gain", "g_embedder.", "low_embedder.",
         "high_embedder.", "v_blocks.", "velocity_layer.", "exit_head.")  # fmt: skip
"""Prefixes of weights that those of a network without the part may lack: it keeps its start."""


class Network(ModelMixin, ConfigMixin):
    """A network under the contract. Subclasses call `_setup` and define `native`.

    The arguments of every network are kept as its `config`. The class `...Config` of the same name
    documents them, but for those that the data decide:

    - `input_size`: height and width of the data, H = W.
    - `in_channels`: channels of the data, C.
    - `num_classes`: number of classes; label num_classes is the null class; 0 = unconditional.
    """

    _supports_gradient_checkpointing = True

    native: Callable[..., Tensor]
    """Forward pass of the public architecture in its own time and sign: `native(x, t, y, h,
    guidance)` with `x` (B, C, H, W), native time `t` (B,), `h` = t - s (B,) in our time, y and
    guidance as in `forward`; (B, C, H, W), or more channels. With a second head it takes `heads`
    as well, and where `decoupled` is true, `h` is native s."""

    def _setup(self) -> None:
        """Keep what `forward` needs of the settings."""
        config: Any = self.config
        if config.convention not in CONVENTIONS:
            raise ValueError(
                f"convention must be one of {', '.join(CONVENTIONS)}, got {config.convention!r}"
            )
        self.gradient_checkpointing = False
        self.shape = (config.in_channels, config.input_size, config.input_size)
        self.num_classes, self.second_time = config.num_classes, config.second_time
        self.guidance_interval: bool = config.get("guidance_interval", False)
        self.guidance_output: bool = config.get("guidance_output", False)
        self.velocity_head = bool(config.get("velocity_blocks"))
        self.exits = config.get("exit_layer") is not None
        self.decoupled = config.get("decoupled_depth") is not None
        self.convention = config.convention
        self.noise_scale: float = config.get("noise_scale", 1.0)
        if self.noise_scale != 1.0 and self.convention not in ("jit", "clean"):
            raise ValueError("noise_scale is a setting of convention jit or clean")
        self.steps = DiscreteSteps() if self.convention == "ddpm" else None

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        s: Tensor | None = None,
        guidance: Tensor | None = None,
        heads: Literal["map", "velocity", "exit", "both"] = "map",
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict F, (B, C, H, W).

        - `x_t`: noisy data (B, C, H, W).
        - `t`: times (B,) in [0, 1]; 0 is data, 1 is noise.
        - `y`: labels (B,) int64, num_classes = no label; ignored by an unconditional network.
        - `s`: destination times (B,) of a two-time network; None means s = t.
        - `guidance`: guidance scales (B,) >= 1, or (B, 3): scale, low and high of the interval of
          t in which it holds, (0, 1) where it is not said; None means scale 1.
        - `heads`: "map" is F; "velocity" the v of the velocity head and "exit" the output of the
          exit head, which are an F as well; "both" the pair of F and the one that there is.
        """
        if x_t.shape[1:] != self.shape:
            raise ValueError(
                f"the network was built for data of shape (C, H, W) = {self.shape} "
                f"(in_channels, input_size), got {tuple(x_t.shape[1:])}"
            )
        if s is not None and not self.second_time:
            raise ValueError("this network has one time: build it with second_time=True to pass s")
        second = ["velocity"] * self.velocity_head + ["exit"] * self.exits
        if heads not in ("map", *second, *(["both"] if second else [])):
            raise ValueError(
                "heads must be map; velocity or both of a DiT with velocity_blocks; exit or both "
                f"of one with an exit_layer, got {heads!r}"
            )
        h = None if s is None else self.native_time(s) if self.decoupled else t - s
        more = {} if heads == "map" else {"heads": heads}
        seen = x_t if self.noise_scale == 1.0 else self.noise_scale * x_t
        raw: Any = self.raw(seen, self.native_time(t), y, h, guidance, **more)
        outputs = [self.field(part, x_t, t) for part in (raw if heads == "both" else (raw,))]
        if self.guidance_output and guidance is not None:
            scale = guidance.view(len(guidance), -1)[:, 0].to(x_t.dtype).view(-1, 1, 1, 1)
            outputs = [f * scale for f in outputs]
        return (outputs[0], outputs[1]) if heads == "both" else outputs[0]

    def raw(self, *inputs: Any, **more: Any) -> Any:
        """`native`, of which public names of inputs and outputs may be others: (B, C, H, W)."""
        return self.native(*inputs, **more)

    def field(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """F like `x_t` (B, C, H, W) of the native output (B, C or more, H, W) at `t` (B,)."""
        raw = raw[:, : x_t.shape[1]]
        if self.convention in ("jit", "clean"):  # TwinFlow tells its own samples by the sign of t
            raw = raw if self.noise_scale == 1.0 else raw / self.noise_scale
            return (x_t - raw) / t.abs().clamp(min=0.05).to(x_t.dtype).view(-1, 1, 1, 1)
        return -raw if self.convention == "reversed" else raw

    def native_time(self, t: Tensor) -> Tensor:
        """Time (B,) of the public architecture at our `t` (B,), by the table above."""
        if self.steps is not None:
            return self.steps(t)
        if self.convention == "edm":
            return 2.68 * t - 1.59
        return 1 - t if self.convention in ("reversed", "jit") else t

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
        wanted = self.gradient_checkpointing and torch.is_grad_enabled()
        recompute = self._gradient_checkpointing_func if wanted else None
        for block in blocks:
            x = recompute(block, x, *args) if recompute else block(x, *args)
        return x


def require_levels(input_size: int, widths: tuple[int, ...], setting: str) -> None:
    """Refuse data that cannot be halved from level to level of a U-Net."""
    factor = 2 ** (len(widths) - 1)
    if input_size % factor:
        raise ValueError(
            f"{len(widths)} levels need an input_size divisible by {factor}, got {input_size}: "
            f"give fewer {setting}"
        )
