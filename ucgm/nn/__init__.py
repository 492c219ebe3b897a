"""Networks: `network(x_t, t, y, s=None) -> F`; t = 0 is data, t = 1 is noise."""

from ucgm.nn.configs import DDTConfig, DiTConfig, EDM2Config, NetworkConfig, UNetConfig
from ucgm.nn.ddt import DDT
from ucgm.nn.dit import DiT
from ucgm.nn.edm2 import EDM2
from ucgm.nn.network import Network
from ucgm.nn.pretrained.files import read_checkpoint
from ucgm.nn.pretrained.load import Imported, from_state_dict, import_weights
from ucgm.nn.pretrained.published import ARCHITECTURES, Source
from ucgm.nn.unet import UNet

__all__ = [
    "ARCHITECTURES",
    "DDT",
    "DDTConfig",
    "DiT",
    "DiTConfig",
    "EDM2",
    "EDM2Config",
    "Imported",
    "Network",
    "NetworkConfig",
    "Source",
    "UNet",
    "UNetConfig",
    "from_state_dict",
    "import_weights",
    "read_checkpoint",
]
