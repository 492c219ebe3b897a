"""Data sets: what the trainer reads and how samples become images again."""

from ucgm.data.dataset import DataConfig as DataConfig
from ucgm.data.dataset import Dataset as Dataset
from ucgm.data.latents.codec import Codec as Codec
from ucgm.data.latents.codec import CodecSettings as CodecSettings
from ucgm.data.pixels import UINT8_RULE as UINT8_RULE
from ucgm.data.pixels import from_uint8 as from_uint8
from ucgm.data.pixels import grid as grid
from ucgm.data.pixels import to_uint8 as to_uint8
from ucgm.data.sets.declared import DataSpec as DataSpec
from ucgm.data.sets.declared import check_card as check_card
from ucgm.data.sets.declared import keep_card as keep_card
from ucgm.data.sets.declared import open_for_sampling as open_for_sampling
from ucgm.data.sets.digits import Digits as Digits
from ucgm.data.sets.digits import DigitsDataset as DigitsDataset
from ucgm.data.sets.image_folder import ImageDataset as ImageDataset
from ucgm.data.sets.image_folder import Images as Images
from ucgm.data.sets.latent_shards import LatentDataset as LatentDataset
from ucgm.data.sets.latent_shards import Latents as Latents
from ucgm.runtime.files import asset_path as asset_path
