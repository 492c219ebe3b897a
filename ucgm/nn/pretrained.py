"""Public weights as networks under our contract.

    network = from_state_dict("sit", torch.load(path, weights_only=True))
    F = network(x_t, t, y)                    # our time and sign
    v = network.native(x, t, y)               # the published forward pass

Settings are read off the shapes; what shapes cannot show (heads, latent side, published switches)
has the architecture's default or must be given, under our name or that of the published
constructor. A setting that contradicts the file, an unknown, a missing or a mis-shaped key is an
error that names the value that would fit. `import_weights` also returns what a run needs beside
the network: its config, transport, guidance rule and latent normalisation.

Sources: DiT arXiv:2212.09748, SiT 2401.08740, REPA 2410.06940, REPA-E 2504.10483, LightningDiT
2501.01423, TiT 2505.07447, DDT 2504.05741, EDM2 2312.02696, and their released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ucgm.nn.configs import FAMILIES, DDTConfig, DiTConfig, EDM2Config, NetworkConfig
from ucgm.nn.layouts import State, read_settings, translate
from ucgm.nn.network import Network
from ucgm.nn.weights import unwrap

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


@dataclass(frozen=True)
class Imported:
    """A loaded network and what was learnt on the way."""

    network: Network
    config: NetworkConfig
    """`config.build(shape, num_classes)` makes the same network with new weights."""
    shape: tuple[int, int, int]
    """(C, H, W) of the latents."""
    num_classes: int
    """The null label is `num_classes`; 0: unconditional."""
    source: Source
    dropped: tuple[str, ...]
    """Entries and keys of the file that no network needs."""


def _sd(channels: int) -> dict[str, Any]:
    std = (1 / SD_SCALE,) * channels
    return dict(vae=SD_VAE, latent_mean=(0.0,) * channels, latent_std=std)


@dataclass(frozen=True)
class Architecture:
    """Defaults of one public architecture."""

    config: NetworkConfig
    source: Source
    aliases: Mapping[str, str] = field(default_factory=dict)


_DIT = dict(use_qknorm="qk_norm", use_rope="rope")
_DDT = dict(num_groups="num_heads", num_blocks="depth", num_encoder_blocks="encoder_depth")
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
    "dit": Architecture(DiTConfig(family="dit", convention="ddpm"), _EPS, _DIT),
    "sit": Architecture(
        DiTConfig(family="dit", convention="reversed"), Source(guidance_channels=3, **_sd(4)), _DIT
    ),
    "repa": Architecture(DiTConfig(family="dit"), Source(**_sd(4)), _DIT),
    "repae": Architecture(DiTConfig(family="dit"), Source(vae="REPA-E/e2e-vavae-hf"), _DIT),
    "lightningdit": Architecture(
        DiTConfig(family="lightningdit", convention="reversed"), _LIGHTNING, _DIT
    ),
    "tit": Architecture(DiTConfig(family="tit"), Source(), _DIT),
    "ddt": Architecture(
        DDTConfig(time_max_period=10.0, convention="reversed"),
        Source(guidance_interval=(0.0, 0.7), **_sd(4)),
        _DDT,
    ),
    "edm2": Architecture(EDM2Config(), _EDM2),
}


def from_state_dict(
    architecture: str, state_dict: Mapping[str, Any], **config: Any
) -> Network:
    """Return the network of `import_weights`."""
    return import_weights(architecture, state_dict, **config).network


def import_weights(
    architecture: str, state_dict: Mapping[str, Any], which: str = "ema", **config: Any
) -> Imported:
    """Load published weights.

    - `architecture`: a key of `ARCHITECTURES`; the diffusers layout of DiT is recognised.
    - `state_dict`: the flat tensors, or a whole checkpoint around them.
    - `which`: "ema" or "model", for a checkpoint that has both.
    - `config`: settings of the network; second_time=True or guidance_input=True add a
      zero-initialised input.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}"
        )
    base = ARCHITECTURES[architecture]
    flat, left = unwrap(state_dict, which)
    state, dropped = translate(architecture, flat)
    given = _published_names(architecture, config)
    settings = _settle(architecture, flat if not _renamed(flat) else state, given)
    shape = (settings.pop("in_channels"), *(settings.pop("input_size"),) * 2)
    num_classes = settings.pop("num_classes")
    built = replace(base.config, **settings)
    network = _load(architecture, built, shape, num_classes, state)
    return Imported(
        network, built, shape, num_classes, _source(base, flat, shape), (*left, *dropped)
    )
