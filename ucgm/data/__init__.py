"""Data sets: what the trainer reads and how samples become images again."""

from ucgm.data.digits import Digits, DigitsDataset
from ucgm.data.images import UINT8_RULE, from_uint8, grid, to_uint8
from ucgm.data.source import DataConfig, Dataset, asset_path

__all__ = [
    "UINT8_RULE",
    "DataConfig",
    "Dataset",
    "Digits",
    "DigitsDataset",
    "asset_path",
    "from_uint8",
    "grid",
    "to_uint8",
]
