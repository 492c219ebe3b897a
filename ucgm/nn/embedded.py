"""Networks under one vector c, the sum of the embeddings of times, label and guidance."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ucgm.nn.embeddings import FourierEmbedder, ScalarEmbedder
from ucgm.nn.network import Network

_ZERO = ("adaLN_modulation.", "final_layer.linear.", "velocity_layer.linear.", "exit_head.linear.",
         "unet.conv_out.",
         *(f"{name}_embedder.mlp.2." for name in ("h", "g", "low", "high")))  # fmt: skip
"""Layers that start at zero: F = 0, every block is the identity, second inputs have no effect."""


class EmbeddedNetwork(Network):
    """A network under one vector c, the sum of the embeddings of times, label and guidance.

    Subclasses call `_embed` and define `backbone`.
    """

    def _embed(self, width: int, patch_size: int = 1) -> None:
        """Create the embedders; those of h and of the guidance start at zero output.

        Those of the guidance are of 1 - 1/scale and of the ends of its interval (arXiv 2512.02012).
        """
        self._embed_patches(width, patch_size)
        config: Any = self.config
        times = (width, config.time_scale, config.time_max_period)
        fourier, of_gap = (config.get(f"fourier_{name}", False) for name in ("time", "gap"))
        self.t_embedder = FourierEmbedder(width) if fourier else ScalarEmbedder(*times)
        self.h_embedder = None
        if self.second_time and not self.decoupled:
            self.h_embedder = FourierEmbedder(width) if of_gap else ScalarEmbedder(*times)
        interval = self.guidance_interval
        if (interval or self.guidance_output) and not config.guidance_input:
            raise ValueError("guidance_interval and guidance_output need guidance_input=True")
        self.g_embedder, self.low_embedder, self.high_embedder = (
            ScalarEmbedder(width, 1.0, 10000.0) if wanted else None
            for wanted in (config.guidance_input, interval, interval)
        )

    def _embed_patches(self, width: int, patch_size: int) -> None:
        """Keep the grid of patches, and create the table of labels."""
        self._setup()
        config: Any = self.config
        self.patch_size, self.grid = patch_size, config.input_size // patch_size
        if config.input_size % patch_size:
            raise ValueError(
                f"patch_size {patch_size} does not divide input_size {config.input_size}"
            )
        self.y_embedder = None
        if self.num_classes:  # the last row is the null class; Sequential for the published name
            table = nn.Embedding(self.num_classes + 1, width)
            self.y_embedder = nn.Sequential(OrderedDict(embedding_table=table))

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw new weights: Xavier-uniform layers, normal embedders (0.02), zeros at `_ZERO`."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if "_embedder.mlp." in name and parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            if any(part in name for part in _ZERO):
                nn.init.zeros_(parameter)

    def native(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        h: Tensor | None = None,
        guidance: Tensor | None = None,
        *,
        r: Tensor | None = None,
    ) -> Tensor:
        """Map `x` (B, C, H, W) in the time and sign of the public architecture, see `Network`.

        `r` (B,), the destination in native time, may be given in place of `h`.
        """
        return self.backbone(x, *self.condition(t, y, self.gap(t, h, r), guidance))

    def gap(self, t: Tensor, h: Tensor | None, r: Tensor | None) -> Tensor | None:
        """What `native` calls h, (B,), of native times `t` and `r` (B,); `h` itself without r."""
        if r is None or self.decoupled:
            return h if r is None else r
        return r - t if self.convention in ("reversed", "jit") else t - r

    def condition(
        self, t: Tensor, y: Tensor | None, h: Tensor | None, guidance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The vector c, and c without the embedding of the label, (B, width) of (B,) each."""
        time = self.embed_scalars(t, h, guidance)
        if self.y_embedder is None:
            return time, time
        return time + self.y_embedder(self.require_labels(y)), time

    def backbone(self, x: Tensor, c: Tensor, time: Tensor) -> Tensor:
        """Map `x` (B, C, H, W) to the native prediction under `c` and `time` (B, width).

        `time` is c without the embedding of the label.
        """
        raise NotImplementedError(f"{type(self).__name__} must define backbone")

    def embed_scalars(self, t: Tensor, h: Tensor | None, guidance: Tensor | None) -> Tensor:
        """Sum of the embeddings of native time, h = t - s and the guidance: (B, width)."""
        c = self.t_embedder(t)
        if self.h_embedder is not None:
            c = c + self.h_embedder(torch.zeros_like(t) if h is None else h)
        if self.g_embedder is None and guidance is not None:
            raise ValueError("build the network with guidance_input=True to pass guidance")
        if self.g_embedder is None:
            return c
        scale, low, high = self.guidance_numbers(t, guidance)
        c = c + self.g_embedder(1 - 1 / scale)
        if self.low_embedder is None or self.high_embedder is None:
            return c
        return c + self.low_embedder(low) + self.high_embedder(high)

    def guidance_numbers(self, t: Tensor, guidance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, low and high, (B,) each, of `guidance` (B,), (B, 3) or None; `t` is (B,)."""
        if guidance is None or guidance.ndim == 1:
            scale = torch.ones_like(t) if guidance is None else guidance
            return scale, torch.zeros_like(t), torch.ones_like(t)
        if not self.guidance_interval or guidance.shape[1:] != (3,):
            raise ValueError(
                "guidance must be scales (B,), or (B, 3) = scale, low, high of a network built "
                f"with guidance_interval=True, got {tuple(guidance.shape)}"
            )
        scale, low, high = guidance.unbind(1)
        return scale, low, high
