"""What each public checkpoint is: our settings for it, and what it expects around the network.

Times are ours (0 data, 1 noise). Sources: DiT arXiv:2212.09748, SiT 2401.08740, REPA 2410.06940,
REPA-E 2504.10483, LightningDiT 2501.01423, TiT 2505.07447, DDT 2504.05741, EDM2 2312.02696,
JiT 2511.13720, RiT 2605.21981, RAEv2 2605.18324, iMF 2512.02012, MeanFlow 2505.13447, decoupled
MeanFlow 2510.24474, and the code released with them. The samplers of REPA-E, LightningDiT, TiT, DDT
and EDM2 are those of UCGM (2505.07447, table 3), which reach the published FID in fewer steps; the
others are their own.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ucgm.nn.configs import DDTConfig, DiTConfig, DiTDHConfig, EDM2Config, NetworkConfig
from ucgm.nn.token_configs import MiTConfig, RAEv2Config


@dataclass(frozen=True)
class Source:
    """What published weights expect around them; plain values, to be stored with a run."""

    transport: str = "Linear"
    """Class in `ucgm.transport`."""
    transport_args: dict[str, Any] = field(default_factory=dict)
    """Its arguments."""
    guidance_scale: float = 1.0
    """Guidance scale of the published FID; 1 is off."""
    guidance_channels: int | None = None
    """Channels that the published sampler guides; None is all."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Published interval of guidance, in our time."""
    sampler: dict[str, Any] = field(default_factory=dict)
    """Settings of `ucgm.sampler.Sampler`; `grid` is a dictionary."""
    vae: str | None = None
    """Name of the autoencoder in `ucgm.data`; None: unknown, or pixels."""
    factor: int = 8
    """Pixels per latent, each side."""
    latent_mean: tuple[float, ...] | None = None
    """Per channel: the network sees (latent - mean) / std. None: a file beside the weights."""
    latent_std: tuple[float, ...] | None = None
    guidance_kind: Literal["classifier_free", "internal", "input"] = "classifier_free"
    """Kind of `ucgm.sampler.Guidance`."""


@dataclass(frozen=True)
class Architecture:
    """Defaults of one public architecture."""

    config: NetworkConfig
    source: Source


def _ucgm(steps: int, extrapolation: float, *warp: float, end: float = 0.001) -> dict[str, Any]:
    grid = dict(warp=warp or (1.17, 0.8, 1.1), gap=(0.001, end))
    return dict(steps=steps, extrapolation=extrapolation, grid=grid)


_SD_VAE: dict[str, Any] = dict(
    vae="sd-vae-ft-ema", latent_mean=(0.0,) * 4, latent_std=(1 / 0.18215,) * 4
)
_DDPM = dict(steps=250, noise="ddim", stochasticity=1.0)
# The reverse SDE with a last step of 0.04, as SiT's code does.
_SDE = dict(steps=250, solver="euler_maruyama", stochasticity=1.0, grid=dict(gap=(0.0, 0.04)))
_EPS = Source("VP", {"prediction": "eps"}, 1.5, 3, sampler=_DDPM, **_SD_VAE)
_LIGHTNING = Source(
    guidance_scale=6.7,
    guidance_channels=3,
    guidance_interval=(0.0, 0.875),
    sampler=_ucgm(50, 0.5),
    vae="vavae-f16d32",
    factor=16,
)
_REPAE = Source(
    guidance_scale=2.5,
    guidance_interval=(0.0, 0.76),
    sampler=_ucgm(40, 0.54, 1.2, 0.72, 1.2, end=0.002),
    vae="e2e-vavae-f16d32",
    factor=16,
)
_DDT = Source(guidance_scale=2.0, guidance_interval=(0.0, 0.7), sampler=_ucgm(50, 0.28), **_SD_VAE)
_EDM2 = Source(
    "EDM",
    sampler=_ucgm(40, 0.4),
    vae="sd-vae-ft-mse",
    latent_mean=(5.81, 3.25, 0.12, -2.15),
    # The published affine map ends at a standard deviation of 0.5.
    latent_std=(4.17 / 0.5, 4.62 / 0.5, 3.71 / 0.5, 3.28 / 0.5),
)
# Heun on a uniform grid: 50 steps, the last one Euler's. Guided where their 1 - t > 0.1, open.
_JIT = Source(
    guidance_scale=2.4,
    guidance_interval=(0.0, 0.8999),
    sampler=dict(steps=50, solver="heun", grid=dict(gap=(0.0, 0.0))),
)
# Euler. Theirs ends at the last of these times, with a little noise in the latents; ours goes on to
# 0. The guidance of the published FID is a weaker network's: guidance.kind auto, scale 1.42.
_RAE = Source(
    sampler=dict(steps=50, grid=dict(gap=(0.0, 0.001), shift=48**0.5)),
    vae="rae-dinov2",
    factor=16,
    latent_mean=(0.0,) * 768,  # the autoencoder normalises
    latent_std=(1.0,) * 768,
)


def _steps(count: int, solver: str = "jump", shift: float = 1.0) -> dict[str, Any]:
    """The jumps of a flow map, or another solver, on a uniform grid to 0, shifted."""
    return dict(steps=count, solver=solver, grid=dict(gap=(0.0, 0.0), shift=shift))


# Latents of DINOv2-S, shifted by the root of 384 16 16 / 4096. Guided where 0.1 < their t < 0.98.
_RIT = Source(
    guidance_scale=3.7,
    guidance_interval=(0.0201, 0.8999),
    sampler=_steps(25, "heun", 24**0.5),
    factor=16,
)
_RAE2 = Source(
    guidance_kind="internal",
    guidance_scale=1.78,
    guidance_interval=(0.1, 1.0),
    sampler=_steps(100, "ucgm", 8.0),
    factor=16,
)
_IMF = Source(
    guidance_kind="input",
    sampler=_steps(1),
    vae="sd-vae-ft-mse",
    latent_mean=(0.86488, -0.27787343, 0.21616915, 0.3738409),
    latent_std=(4.85503674, 5.31922414, 3.93725398, 3.9870003),
)
_PMF = Source(guidance_kind="input", sampler=_steps(1))
_ONE_STEP: dict[tuple[str, int | None, int | None, int | None], tuple[float, float, float]] = {
    ("imf", 768, 12, 2): (8.0, 0.4, 0.65),
    ("imf", 768, 24, 2): (10.5, 0.4, 0.6),
    ("imf", 1024, 32, 2): (10.5, 0.4, 0.6),
    ("imf", 1024, 48, 2): (8.0, 0.42, 0.62),
    ("pmf", 768, 16, 16): (8.5, 0.1, 0.7),
    ("pmf", 1024, 32, 16): (7.0, 0.2, 0.7),
    ("pmf", 1280, 48, 16): (7.0, 0.2, 0.6),
    ("pmf", 768, 16, 32): (6.5, 0.1, 0.7),
    ("pmf", 1024, 32, 32): (7.5, 0.2, 0.6),
}
"""Family, width, depth, patch -> published guidance scale of one step, and its interval."""

ARCHITECTURES: dict[str, Architecture] = {
    "dit": Architecture(DiTConfig(family="dit", convention="ddpm"), _EPS),
    "sit": Architecture(
        DiTConfig(family="dit", convention="reversed"),
        Source(guidance_scale=1.5, guidance_channels=3, sampler=_SDE, **_SD_VAE),
    ),
    "repa": Architecture(
        DiTConfig(family="dit"),
        Source(guidance_scale=1.8, guidance_interval=(0.0, 0.7), sampler=_SDE, **_SD_VAE),
    ),
    "repae": Architecture(DiTConfig(family="dit"), _REPAE),
    "lightningdit": Architecture(
        DiTConfig(family="lightningdit", convention="reversed"), _LIGHTNING
    ),
    "tit": Architecture(DiTConfig(family="tit"), Source(sampler=_ucgm(60, 0.5))),
    "ddt": Architecture(DDTConfig(time_max_period=10.0, convention="reversed"), _DDT),
    "edm2": Architecture(EDM2Config(), _EDM2),
    "rae_dit": Architecture(DiTConfig(family="lightningdit", fourier_time=True), _RAE),
    "rae_ddt": Architecture(DiTDHConfig(), _RAE),
    "jit": Architecture(DiTConfig(family="jit", convention="jit"), _JIT),
    "rit": Architecture(DiTConfig(family="rit", convention="jit"), _RIT),
    "raev2": Architecture(RAEv2Config(), _RAE2),
    "mf_rae": Architecture(
        DiTDHConfig(second_time=True, fourier_gap=True), replace(_RAE, sampler=_steps(1))
    ),
    "imf": Architecture(MiTConfig(), _IMF),
    "pmf": Architecture(MiTConfig(family="pmf"), _PMF),
    "meanflow_sit": Architecture(
        DiTConfig(family="dit", second_time=True), Source(sampler=_steps(1), **_SD_VAE)
    ),
    "dmf": Architecture(
        DiTConfig(family="dit", second_time=True, decoupled_depth=20),
        Source(sampler=_steps(4), **_SD_VAE),
    ),
}


ALIASES = {"rit_cls": "rit", "raev2_ddt_ig": "raev2", "raev2_ddt_omega": "raev2"}
ALIASES |= {"raev2_dit_ig": "raev2", "repa_sit": "repa", "irepa_sit": "repa"}
"""Other names of an architecture: what tells them apart is in the weights."""


def published_at(architecture: str, source: Source, config: NetworkConfig, side: int) -> Source:
    """`source` with what differs by `side` (DDT, RAE, JiT) or width (EDM2, JiT)."""
    if architecture == "ddt" and side == 64:
        return replace(source, guidance_scale=3.0, sampler=_ucgm(150, 0.28))
    if isinstance(config, EDM2Config):
        better = {320: (50, 0.43), 448: (40, 0.42)}
        steps, extrapolation = better.get(config.model_channels or 0, (40, 0.4))
        return replace(source, sampler=_ucgm(steps, extrapolation))
    if architecture.startswith("rae_") and side == 32:
        shift = 192**0.5
        sampler = source.sampler | {"grid": source.sampler["grid"] | {"shift": shift}}
        return replace(source, sampler=sampler, vae=None, latent_mean=None, latent_std=None)
    if (noise := getattr(config, "noise_scale", 1.0)) != 1.0:
        source = replace(source, transport="LoudLinear", transport_args={"noise": noise})
    if isinstance(config, MiTConfig):
        size = (architecture, config.hidden_size, config.depth, config.patch_size)
        scale, low, high = _ONE_STEP.get(size, (7.0, 0.2, 0.7))
        return replace(source, guidance_scale=scale, guidance_interval=(low, high))
    if isinstance(config, RAEv2Config) and config.exit_layer is None:
        return replace(source, guidance_kind="classifier_free", guidance_scale=1.0)
    if architecture == "jit":
        at_256, at_512 = {768: (3.0, 3.0), 1280: (2.2, 2.3)}.get(
            getattr(config, "hidden_size", 0), (2.4, 2.5)
        )
        return replace(source, guidance_scale=at_512 if side >= 512 else at_256)
    return source
