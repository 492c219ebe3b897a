"""What each public checkpoint is: our settings for it, and what it expects around the network.

Times are ours (0 data, 1 noise). Sources: DiT arXiv:2212.09748, SiT 2401.08740, REPA 2410.06940,
REPA-E 2504.10483, LightningDiT 2501.01423, TiT 2505.07447, DDT 2504.05741, EDM2 2312.02696, and
the code released with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ucgm.nn.configs import DDTConfig, DiTConfig, EDM2Config, NetworkConfig

SD_VAE = "stabilityai/sd-vae-ft-ema"
SD_SCALE = 0.18215


@dataclass(frozen=True)
class Source:
    """What published weights expect around them; plain values, to be stored with a run."""

    transport: str = "Linear"
    """Class in `ucgm.transport`."""
    transport_args: dict[str, Any] = field(default_factory=dict)
    """Its arguments."""
    guidance_channels: int | None = None
    """Channels that the published sampler guides; None is all."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Published interval of guidance, in our time."""
    vae: str | None = None
    """Hub name of the autoencoder; None: unknown, or pixels."""
    latent_mean: tuple[float, ...] | None = None
    """Per channel: the network sees (latent - mean) / std. None: a file beside the weights."""
    latent_std: tuple[float, ...] | None = None


def _sd(channels: int) -> dict[str, Any]:
    std = (1 / SD_SCALE,) * channels
    return dict(vae=SD_VAE, latent_mean=(0.0,) * channels, latent_std=std)


@dataclass(frozen=True)
class Architecture:
    """Defaults of one public architecture."""

    config: NetworkConfig
    source: Source


_EPS = Source("VP", {"prediction": "eps"}, guidance_channels=3, **_sd(4))
_VAVAE = "hustvl/vavae-imagenet256-f16d32-dinov2"
_LIGHTNING = Source(guidance_channels=3, guidance_interval=(0.0, 0.875), vae=_VAVAE)
_EDM2 = Source(
    "EDM",
    vae="stabilityai/sd-vae-ft-mse",
    latent_mean=(5.81, 3.25, 0.12, -2.15),
    # The published affine map ends at a standard deviation of 0.5.
    latent_std=(4.17 / 0.5, 4.62 / 0.5, 3.71 / 0.5, 3.28 / 0.5),
)

ARCHITECTURES: dict[str, Architecture] = {
    "dit": Architecture(DiTConfig(family="dit", convention="ddpm"), _EPS),
    "sit": Architecture(
        DiTConfig(family="dit", convention="reversed"), Source(guidance_channels=3, **_sd(4))
    ),
    "repa": Architecture(DiTConfig(family="dit"), Source(**_sd(4))),
    "repae": Architecture(DiTConfig(family="dit"), Source(vae="REPA-E/e2e-vavae-hf")),
    "lightningdit": Architecture(
        DiTConfig(family="lightningdit", convention="reversed"), _LIGHTNING
    ),
    "tit": Architecture(DiTConfig(family="tit"), Source()),
    "ddt": Architecture(
        DDTConfig(time_max_period=10.0, convention="reversed"),
        Source(guidance_interval=(0.0, 0.7), **_sd(4)),
    ),
    "edm2": Architecture(EDM2Config(), _EDM2),
}
