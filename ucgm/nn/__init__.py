"""Networks: `network(x_t, t, y, s=None) -> F`; t = 0 is data, t = 1 is noise."""

from ucgm.nn.configs import DDTConfig as DDTConfig
from ucgm.nn.configs import DiTConfig as DiTConfig
from ucgm.nn.configs import DiTDHConfig as DiTDHConfig
from ucgm.nn.configs import EDM2Config as EDM2Config
from ucgm.nn.configs import NetworkConfig as NetworkConfig
from ucgm.nn.configs import UNetConfig as UNetConfig
from ucgm.nn.ddt import DDT as DDT
from ucgm.nn.dit import DiT as DiT
from ucgm.nn.edm2 import EDM2 as EDM2
from ucgm.nn.imf import MiT as MiT
from ucgm.nn.network import Network as Network
from ucgm.nn.pretrained.files import read_checkpoint as read_checkpoint
from ucgm.nn.pretrained.load import Imported as Imported
from ucgm.nn.pretrained.load import from_state_dict as from_state_dict
from ucgm.nn.pretrained.load import import_weights as import_weights
from ucgm.nn.pretrained.published import ARCHITECTURES as ARCHITECTURES
from ucgm.nn.pretrained.published import Source as Source
from ucgm.nn.rae import DiTDH as DiTDH
from ucgm.nn.raev2 import RAEv2 as RAEv2
from ucgm.nn.token_configs import MiTConfig as MiTConfig
from ucgm.nn.token_configs import RAEv2Config as RAEv2Config
from ucgm.nn.unet import UNet as UNet
