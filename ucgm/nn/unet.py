"""U-Net for pixels: diffusers' `UNet2DModel` behind the contract (DDPM, arXiv:2006.11239).

    c = embed_t(t) + embed_y(y) [+ embed_h(t - s)] [+ embed_g(1 - 1/guidance)]
    F = UNet2DModel(x_t; c)

c takes the place of the time embedding of every residual block. The last convolution starts at
zero, so F = 0 at the start.
"""

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ucgm.nn.embedded import EmbeddedNetwork
from ucgm.nn.network import require_levels


class NoTime(nn.Module):
    """Stands for the time embedding of `UNet2DModel`: c comes in as its class embedding."""

    def forward(self, t: Tensor) -> Tensor:
        """Zeros, (B, 1)."""
        return t.new_zeros(t.shape[0], 1)


class UNet(EmbeddedNetwork):
    """U-Net of residual and attention blocks, `network(x_t, t, y, s=None) -> F`.

    For its arguments see `Network`; `time_max_period` and `convention` are as in `DiTConfig`.
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
        # Imports transformers, a third of the time in which a command starts.
        from diffusers.models.unets.unet_2d import UNet2DModel

        if any(c % norm_groups for c in channels):
            raise ValueError(f"norm_groups {norm_groups} does not divide channels {channels}")
        require_levels(input_size, channels, "channels")
        self._embed(4 * channels[0])
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

    def backbone(self, x: Tensor, c: Tensor, time: Tensor) -> Tensor:
        """Forward pass, (B, C, H, W)."""
        return self.unet(x, c[:, 0], class_labels=c, return_dict=False)[0]
