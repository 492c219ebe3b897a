"""Representation alignment in a training: the projector, and where the features come from."""

from typing import Any

import torch
from torch import Tensor, nn

from ucgm.data import Dataset
from ucgm.data.extractor import open_extractor
from ucgm.data.loader import BatchPlan, batch_indices
from ucgm.data.sets.latent_shards import LatentDataset
from ucgm.objective.alignment import Alignment, Features
from ucgm.runs.config import Config


def aligned(
    config: Config, network: nn.Module, dataset: Dataset, plan: BatchPlan, device: torch.device
) -> Alignment | None:
    """The projector on ``device``, which knows where features come from; None without the term."""
    if not config.objective.alignment:
        return None
    features, channels = features_of(config, dataset, plan, device)
    alignment = make_alignment(config, network, channels).to(device)
    alignment.features = features
    return alignment


def features_of(
    config: Config, dataset: Dataset, plan: BatchPlan, device: torch.device
) -> tuple[Features, int]:
    """Where the features of a batch come from, and how many channels they have.

    Raises:
        ValueError: an extractor of images for a set of latents, or none and none are stored.
    """
    settings, seed = config.alignment, config.train.seed
    if settings.extractor is None:
        if not isinstance(dataset, LatentDataset) or dataset.features is None:
            raise ValueError(
                "objective.alignment needs features: name an extractor of images in "
                "alignment.extractor, or store them with `ucgm encode --features NAME`"
            )
        if dataset.mirrored and not dataset.features.flips:
            raise ValueError(f"{dataset.name} has no features of mirrored images: data.flips false")
        stored = dataset

        def read(step: int, rows: Tensor, x: Tensor) -> Tensor:
            found = stored.read_features(batch_indices(stored, plan, seed, step, rows))
            return found.to(x.device, torch.float32)

        return read, dataset.features.row_shape[0]
    if not dataset.lossless:
        raise ValueError(
            f"alignment.extractor sees images, and {dataset.name} holds latents: store its features"
            " with `ucgm encode --features NAME`, and leave alignment.extractor out"
        )
    extractor = open_extractor(settings.extractor, settings.weights, device, "--alignment.weights")

    def make(step: int, rows: Tensor, x: Tensor) -> Tensor:
        return extractor.maps(dataset.decode(x)).to(x.device)

    blank = make(0, torch.zeros(1), torch.zeros(1, *dataset.shape, device=device))
    return make, blank.shape[1]


def make_alignment(config: Config, network: nn.Module, channels: int) -> Alignment:
    """The projector for a new ``network``.

    Raises:
        ValueError: the network has no such block, or its weights are spread over processes.
    """
    settings, part = config.alignment, getattr(network, "config", {})
    blocks: Any = getattr(network, "blocks", None)
    width, grid = part.get("hidden_size"), getattr(network, "grid", 0)
    if blocks is None or width is None:
        raise ValueError("objective.alignment is about the tokens of a transformer, such as DiT")
    if config.train.sharding != "none":
        raise ValueError("objective.alignment goes with train.sharding none alone")
    if layer_of(config, network) > part["depth"]:
        raise ValueError(
            f"alignment.layer {settings.layer} must lie in 1 to {part['depth']}, the network's "
            "blocks"
        )
    torch.manual_seed(config.train.seed)
    choice = (settings.projector, settings.hidden, settings.kernel, settings.gamma)
    return Alignment(width, channels, grid, *choice)


def layer_of(config: Config, network: nn.Module) -> int:
    """Number of the block of ``network`` whose tokens follow, from 1."""
    depth = getattr(network, "config", {})["depth"]
    return config.alignment.layer or max(1, min(8, depth // 3))
