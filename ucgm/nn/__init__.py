"""Networks: `network(x_t, t, y, s=None) -> F`; t = 0 is data, t = 1 is noise."""

from ucgm.nn.configs import DiTConfig, NetworkConfig
from ucgm.nn.dit import DiT

__all__ = ["DiT", "DiTConfig", "NetworkConfig"]
