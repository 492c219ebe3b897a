"""Data sets: what the trainer reads and how samples become images again."""

from ucgm.data.dataset import DataConfig, Dataset
from ucgm.data.latents.codec import Codec, CodecSettings
from ucgm.data.pixels import UINT8_RULE, from_uint8, grid, to_uint8
from ucgm.data.sets.declared import DataSpec, check_card, keep_card, open_for_sampling
from ucgm.data.sets.digits import Digits, DigitsDataset
from ucgm.data.sets.image_folder import ImageDataset, Images
from ucgm.data.sets.latent_shards import LatentDataset, Latents
from ucgm.runtime.files import asset_path

__all__ = [
    "UINT8_RULE",
    "Codec",
    "CodecSettings",
    "DataConfig",
    "DataSpec",
    "Dataset",
    "Digits",
    "DigitsDataset",
    "ImageDataset",
    "Images",
    "LatentDataset",
    "Latents",
    "asset_path",
    "check_card",
    "from_uint8",
    "grid",
    "keep_card",
    "open_for_sampling",
    "to_uint8",
]
