"""Data sets: what the trainer reads and how samples become images again."""

from ucgm.data.card import check_card, keep_card, open_for_sampling
from ucgm.data.codec import Codec, CodecSettings
from ucgm.data.declared import Declared
from ucgm.data.digits import Digits, DigitsDataset
from ucgm.data.folder import ImageDataset, Images
from ucgm.data.images import UINT8_RULE, from_uint8, grid, to_uint8
from ucgm.data.latents import LatentDataset, Latents
from ucgm.data.source import DataConfig, Dataset
from ucgm.runtime.files import asset_path

__all__ = [
    "UINT8_RULE",
    "Codec",
    "CodecSettings",
    "DataConfig",
    "Declared",
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
