"""Autoencoders: pixels to raw latents and back; the one file of the room that needs diffusers.

    posterior(images in [-1, 1]) = (mean, std)  of the raw latent;   decode(raw) = images

    AutoencoderKL   SD-VAE f8d4 (2112.10752), VA-VAE f16d32 (2501.01423), E2E-VAE (2504.10483):
                    a Gaussian per element
    AutoencoderDC   DC-AE f32c32 (2410.10733): deterministic, std is None
    AutoencoderRAE  representation autoencoders (2510.11690): deterministic; images in [0, 1] and
                    latent statistics inside
    identity        the latent is the image

Nothing that is downloaded runs code: configurations are JSON, weights are safetensors or are read
with ``weights_only=True``, and a file whose tensors do not fit the model exactly is refused.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ucgm.data.latents.ldm_layout import ldm_arguments, ldm_to_diffusers, read_ldm_state
from ucgm.runtime.precision import exact_float32

Store = Literal["sample", "mean", "moments"]
KINDS = {"AutoencoderKL": "kl", "AutoencoderDC": "dc", "AutoencoderRAE": "rae"}


@dataclass(frozen=True)
class PublicVAE:
    """A public autoencoder: where it is, and how published work stores and scales its latents.

    Attributes:
        repo: on the Hub.
        file: a checkpoint in the LDM layout; None for a repository in the diffusers layout.
        store: sample or mean of the posterior.
        normalise: ``scale`` by the model's own factor, per ``channel``, or ``none``.
    """

    repo: str
    file: str | None = None
    store: Store = "mean"
    normalise: str = "channel"


PUBLIC_VAES = {
    "sd-vae-ft-ema": PublicVAE("stabilityai/sd-vae-ft-ema", normalise="scale"),
    "sd-vae-ft-mse": PublicVAE("stabilityai/sd-vae-ft-mse", normalise="scale"),
    "vavae-f16d32": PublicVAE(
        "hustvl/vavae-imagenet256-f16d32-dinov2",
        "vavae-imagenet256-f16d32-dinov2.pt",
        store="sample",
    ),
    "e2e-vavae-f16d32": PublicVAE("REPA-E/e2e-vavae-hf"),
    "dc-ae-f32c32": PublicVAE("mit-han-lab/dc-ae-f32c32-in-1.0-diffusers"),
    "rae-dinov2": PublicVAE("nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08", normalise="none"),
}


class Autoencoder:
    """A frozen autoencoder with one interface for all classes.

    Args:
        name: how it was asked for.
        kind: ``kl``, ``dc``, ``rae`` or ``identity``.
        module: the model in evaluation mode; None for the identity.

    Attributes:
        digest: SHA-256 over names, shapes and float32 values of the weights: the same for the same
            weights, whatever the file format.
    """

    def __init__(self, name: str, kind: str, module: nn.Module | None) -> None:
        self.name, self.kind = name, kind
        self.module: Any = None if module is None else module.eval().requires_grad_(False)
        self.digest = "" if module is None else state_digest(module.state_dict())

    @property
    def deterministic(self) -> bool:
        """Whether an image has one latent, so that there is nothing to sample."""
        return self.kind != "kl"

    @property
    def scale(self) -> tuple[float, float]:
        """The model's own ``(factor, shift)``: normalised = (raw - shift) * factor."""
        if self.kind not in ("kl", "dc"):
            return 1.0, 0.0
        config = self.module.config
        return float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of the raw latents (B, C, h, w) of images (B, 3, H, W)."""
        if self.kind == "identity":
            return images, None
        module = self.module.to(images.device)
        with exact_float32(images.device):
            if self.kind == "kl":
                distribution = module.encode(images).latent_dist
                return distribution.mean, distribution.std
            if self.kind == "rae":
                images = (images + 1.0) / 2.0
            return module.encode(images).latent, None

    def decode(self, raw: Tensor) -> Tensor:
        """Images (B, 3, H, W), about in [-1, 1], of raw latents (B, C, h, w), with gradient."""
        if self.kind == "identity":
            return raw
        module = self.module.to(raw.device)
        with exact_float32(raw.device):
            return images_of(module, raw)

    @torch.no_grad()
    def latent_shape(self, size: int, device: str = "cpu") -> tuple[int, int, int]:
        """Shape (C, h, w) of the latent of a ``size`` x ``size`` image, found by encoding one.

        Raises:
            ValueError: when such an image does not come back in its size.
        """
        image = torch.zeros(1, 3, size, size, device=device)
        try:
            raw = self.posterior(image)[0]
            back = tuple(self.decode(raw).shape[1:])
        except RuntimeError as error:
            raise ValueError(f"{self.name} cannot take {size}x{size} pixels: {error}") from error
        if back != (3, size, size):
            raise ValueError(
                f"{self.name} turns {size}x{size} pixels into {back[1]}x{back[2]}: choose --size "
                f"{back[1]}, or a multiple of the model's factor."
            )
        _, channels, height, width = raw.shape
        return channels, height, width


def images_of(module: Any, raw: Tensor) -> Tensor:
    """Images (B, 3, H, W), about in [-1, 1], that a model makes of raw latents (B, C, h, w)."""
    images = module.decode(raw, return_dict=False)[0]
    return images * 2.0 - 1.0 if KINDS.get(type(module).__name__) == "rae" else images


@lru_cache(maxsize=2)
def open_autoencoder(where: str) -> Autoencoder:
    """Load an autoencoder.

    Args:
        where: ``identity``; a name of :data:`PUBLIC_VAES`; a folder in the diffusers layout (or a
            pipeline folder that has one under ``vae/``); a file in the LDM layout; a Hub id.

    Raises:
        ValueError: not found, of an unsupported class, or weights that do not fit, with the remedy.
    """
    if where == "identity":
        return Autoencoder(where, "identity", None)
    path, known = Path(where), PUBLIC_VAES.get(where)
    if path.is_file():
        module = _from_ldm(path)
    elif path.is_dir():
        module = _from_diffusers(where, path / "vae" if (path / "vae").is_dir() else path)
    elif known is not None and known.file is not None:
        module = _from_ldm(_download(known.repo, known.file))
    elif known is not None or (where.count("/") == 1 and not where.startswith((".", "/", "~"))):
        module = _from_diffusers(where, known.repo if known else where)
    else:
        raise ValueError(
            f"there is no autoencoder {where!r}: give a folder, a file, a Hub id (owner/name), "
            f"or one of identity, {', '.join(PUBLIC_VAES)}."
        )
    return Autoencoder(where, KINDS[type(module).__name__], module.float())


def _from_diffusers(where: str, source: str | Path) -> nn.Module:
    """A model folder or Hub repository with config.json, whose weights must fit completely."""
    diffusers = importlib.import_module("diffusers")
    try:
        config = diffusers.AutoencoderKL.load_config(str(source))
        name = config.get("_class_name")
        if name not in KINDS:
            raise ValueError(f"it is a {name}; supported are {', '.join(KINDS)}.")
        if name == "AutoencoderRAE" and importlib.util.find_spec("transformers") is None:
            raise ValueError("its encoder needs one more package: pip install transformers")
        cls = getattr(diffusers, name)
        module, report = cls.from_pretrained(
            str(source), torch_dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # diffusers, huggingface_hub and safetensors have their own errors
        raise ValueError(f"the autoencoder {where} cannot be loaded: {error}") from error
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[key]:
            raise ValueError(
                f"the weights of {where} do not fit its config.json: {len(report[key])} "
                f"{key.replace('_', ' ')}, first {report[key][0]}."
            )
    return module


def _from_ldm(path: Path) -> nn.Module:
    """An AutoencoderKL from a checkpoint of CompVis/latent-diffusion's layout."""
    diffusers = importlib.import_module("diffusers")
    state = read_ldm_state(path)
    try:
        module = diffusers.AutoencoderKL(**ldm_arguments(state))
        module.load_state_dict(ldm_to_diffusers(state))
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path} does not fit AutoencoderKL: {error}") from error
    return module


def _download(repo: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, file))
    except Exception as error:
        raise ValueError(
            f"{file} of {repo} cannot be downloaded ({error}): give the path of a copy."
        ) from error


def state_digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values of the floating-point tensors, of any shape."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if state[name].is_floating_point():
            value = state[name].detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
