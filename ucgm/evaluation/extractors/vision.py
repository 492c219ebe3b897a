"""Published vision encoders through ``transformers``: the further eyes of FDr6 (arXiv 2604.28190).

    name        checkpoint                          pixels  feature
    clip        openai/clip-vit-large-patch14       256     class token, normed, not projected
    siglip      google/siglip2-so400m-patch16-256   224     attention pool
    mae         facebook/vit-mae-large              224     class token, no patch masked
    convnext    facebook/convnextv2-base-22k-224    224     mean of the last map, not normed
    dinov2_256  facebook/dinov2-large               256     class token (``dinov2``: at 224)

Weights are a folder with ``config.json`` and ``model.safetensors``, or the Hub's.  As in the code
that made the published numbers (FD-loss, on timm): an antialiased bicubic filter without rounding,
mean and deviation of the checkpoint, zeros on the right and below up to a multiple of the patch,
and a position table of another grid resampled by an antialiased bicubic filter.
"""

import functools
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ucgm.data.extractor import Extractor, reason_of, register_extractor
from ucgm.data.latents.autoencoder import state_digest

Colour = tuple[float, float, float]
IMAGENET: tuple[Colour, Colour] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: tuple[Colour, Colour] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI: tuple[Colour, Colour] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)


def _pooled(module: nn.Module, x: Tensor) -> Tensor:
    return module(x).pooler_output


def _class_token(module: nn.Module, x: Tensor) -> Tensor:
    return module(x).last_hidden_state[:, 0]


def _unmasked(module: Any, x: Tensor) -> Tensor:
    # The patches are sorted by this noise: their own order, and not another one every time.
    order = torch.arange((x.shape[-1] // module.config.patch_size) ** 2, device=x.device)
    return module(x, noise=order.to(x).expand(len(x), -1)).last_hidden_state[:, 0]


def _mean_of_map(module: nn.Module, x: Tensor) -> Tensor:
    return module(x).last_hidden_state.mean((2, 3))


class Encoder(NamedTuple):
    """A checkpoint on the Hub, its class, side in pixels, colours, and feature (B, d) of x."""

    repo: str
    cls: str
    size: int
    colours: tuple[Colour, Colour]
    feature: Callable[[Any, Tensor], Tensor]
    settings: dict[str, Any] = {}


ENCODERS = {
    "clip": Encoder("openai/clip-vit-large-patch14", "CLIPVisionModel", 256, OPENAI, _pooled),
    "siglip": Encoder("google/siglip2-so400m-patch16-256", "SiglipVisionModel", 224, HALF, _pooled),
    "mae": Encoder(
        "facebook/vit-mae-large", "ViTMAEModel", 224, IMAGENET, _unmasked, {"mask_ratio": 0.0}
    ),
    "convnext": Encoder(
        "facebook/convnextv2-base-22k-224", "ConvNextV2Model", 224, IMAGENET, _mean_of_map
    ),
    "dinov2_256": Encoder("facebook/dinov2-large", "Dinov2Model", 256, IMAGENET, _class_token),
}


class VisionFeatures(nn.Module):
    """An encoder with its preprocessing.

    Args:
        encoder: which one.
        module: of transformers, for images of ``padded`` pixels.
        padded: side of the resized image with its zeros.
    """

    def __init__(self, encoder: Encoder, module: nn.Module, padded: int) -> None:
        super().__init__()
        self.encoder, self.module, self.padded = encoder, module, padded

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8, or float in [0, 255], to features (B, d)."""
        size, x = self.encoder.size, images.float()
        if x.shape[2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bicubic", antialias=True)
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in self.encoder.colours)
        x = F.pad((x / 255.0 - mean) / std, (0, self.padded - size, 0, self.padded - size))
        return {"features": self.encoder.feature(self.module, x)}


def build_vision(name: str, weights: str | None = None) -> Extractor:
    """The encoder ``name`` as an extractor, from a local folder, else from the Hub.

    Raises:
        ValueError: when transformers or the weights are missing, or are of another network.
    """
    encoder = ENCODERS[name]
    remedy = (
        f"Get config.json and model.safetensors of https://huggingface.co/{encoder.repo} and name "
        "their folder with --extractor-weights PATH."
    )
    try:
        cls = getattr(importlib.import_module("transformers"), encoder.cls)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"extractor {name} needs a package: pip install transformers") from error
    folder = _folder(name, encoder, weights, remedy)
    try:
        module, digest = _loaded(cls, encoder, folder)
        config: Any = module.config
        patch = config.patch_size if encoder.cls != "ConvNextV2Model" else 1
        features = VisionFeatures(encoder, module.eval(), -(-encoder.size // patch) * patch)
        with torch.no_grad():
            width = features(torch.zeros(1, 3, 8, 8))["features"].shape[1]
    except Exception as error:  # transformers, safetensors and torch have their own errors
        raise ValueError(f"{folder} does not hold {name} ({reason_of(error)}). {remedy}") from error
    note = f"{encoder.cls} of width {width} at {encoder.size} pixels"
    return Extractor(name, digest, features, {"features": width}, 3, note=note, batch_size=32)


def _folder(name: str, encoder: Encoder, weights: str | None, remedy: str) -> Path:
    """Where config.json and the weights are: as given, or fetched into the cache of the Hub."""
    if weights is not None:
        folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
        for pattern in ("config.json", "*.safetensors"):
            if not any(folder.glob(pattern)) or not Path(weights).exists():
                missing = weights if not Path(weights).exists() else folder / pattern
                raise ValueError(f"the weights of {name} are missing ({missing}). {remedy}")
        return folder
    from huggingface_hub import snapshot_download

    try:
        wanted = ["config.json", "model*.safetensors*"]
        return Path(snapshot_download(encoder.repo, allow_patterns=wanted))
    except Exception as error:  # the Hub's, httpx's and the system's
        reason = f"model.safetensors of {encoder.repo} could not be had, {reason_of(error)}"
        raise ValueError(f"the weights of {name} are missing ({reason}). {remedy}") from error


def _loaded(cls: Any, encoder: Encoder, folder: Path) -> tuple[nn.Module, str]:
    """The module for images of the encoder's size, and the digest of its weights as stored."""
    logging = importlib.import_module("transformers").logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()  # a table of the text tower's weights, which are not used
        logging.disable_progress_bar()
        found, report = cls.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, **encoder.settings
        )
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
    for key in ("missing_keys", "mismatched_keys"):
        if report[key]:
            raise ValueError(f"{len(report[key])} {key.replace('_', ' ')}, {min(report[key])}")
    state, digest = found.float().state_dict(), state_digest(found.state_dict())
    tables = [k for k in state if "position_embedding" in k]
    if not tables:
        return found, digest
    config = found.config
    config.image_size = -(-encoder.size // config.patch_size) * config.patch_size
    for key in tables:
        state[key] = resampled(state[key], config.image_size // config.patch_size)
    module = cls(config)
    module.load_state_dict(state)
    return module, digest


def resampled(table: Tensor, side: int) -> Tensor:
    """A position table (k + n^2, D) or (1, k + n^2, D) with ``side`` in place of n.

    The first k rows stay as they are.
    """
    rows = table.view(-1, table.shape[-1])
    n = math.isqrt(len(rows))
    if n == side:
        return table
    first, grid = rows.split([len(rows) - n * n, n * n])
    image = grid.T.reshape(1, -1, n, n)
    image = F.interpolate(image, (side, side), mode="bicubic", antialias=True)
    found = torch.cat((first, image[0].flatten(1).T))
    return found.view(*table.shape[:-2], *found.shape)


for _name in ENCODERS:
    register_extractor(_name, functools.partial(build_vision, _name))
