"""U-Net for pixels: diffusers' `UNet2DModel` behind the contract (DDPM, arXiv:2006.11239).

    c = embed_t(t) + embed_y(y) [+ embed_h(t - s)] [+ embed_g(1 - 1/guidance)]
    F = UNet2DModel(x_t; c)

c takes the place of the time embedding of every residual block. The last convolution starts at
zero, so F = 0 at the start.
"""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from ucgm.nn.network import Network, initialize


class NoTime(nn.Module):
    """Stands for the time embedding of `UNet2DModel`: c comes in as its class embedding."""

    def forward(self, t: Tensor) -> Tensor:
        """Zeros, (B, 1)."""
        return t.new_zeros(t.shape[0], 1)


class UNet(Network):
    """U-Net of residual and attention blocks, `network(x_t, t, y, s=None) -> F`. Its settings:

    - `input_size`, `in_channels`, `num_classes`, `second_time`, `guidance_input`,
      `convention`: as in `ucgm.nn.DiT`.
    - `channels`: width of each level; level i works at input_size / 2^i.
    - `layers_per_block`: residual blocks per level (one more on the way up).
    - `attention`: resolutions at which residual blocks are followed by attention.
    - `head_size`: channels of an attention head.
    - `norm_groups`: groups of GroupNorm; divides every width.
    - `time_scale`, `time_max_period`: sinusoids of t; 1000 t is the range they were made for.
    """

    _no_split_modules = ["ResnetBlock2D", "Attention"]
    _skip_layerwise_casting_patterns = ["norm", "embedder"]

    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        in_channels: int = 3,
        channels: tuple[int, ...] = (128, 256, 256, 256),
        layers_per_block: int = 2,
        attention: tuple[int, ...] = (16,),
        head_size: int = 64,
        norm_groups: int = 32,
        num_classes: int = 0,
        second_time: bool = False,
        guidance_input: bool = False,
        time_scale: float = 1000.0,
        time_max_period: float = 10000.0,
        convention: str = "ucgm",
    ) -> None:
        super().__init__()
        factor = 2 ** (len(channels) - 1)
        if input_size % factor:
            raise ValueError(
                f"{len(channels)} levels need an input_size divisible by {factor}, got "
                f"{input_size}: give fewer channels"
            )
        if any(c % norm_groups for c in channels):
            raise ValueError(f"norm_groups {norm_groups} does not divide channels {channels}")
        self._setup((in_channels, input_size, input_size), num_classes, convention, second_time)
        width = 4 * channels[0]
        self._embed(width, time_scale, time_max_period, guidance_input)
        attends = [input_size >> level in attention for level in range(len(channels))]
        self.unet = UNet2DModel(
            sample_size=input_size,
            in_channels=in_channels,
            out_channels=in_channels,
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
            attention_head_dim=head_size,
            norm_num_groups=norm_groups,
            class_embed_type="identity",
        )
        self.unet.register_module("time_proj", NoTime())
        self.unet.register_module("time_embedding", nn.Identity())
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Draw new weights; F = 0."""
        initialize(self, zero=[self.unet.conv_out])

    def native(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Forward pass, (B, C, H, W)."""
        c = self.embed_scalars(t, h, guidance)
        if self.y_embedder is not None:
            c = c + self.y_embedder(self.require_labels(y))
        return self.unet(x, t, class_labels=c, return_dict=False)[0]
