"""Representation alignment: tokens of one block, projected, follow a frozen encoder's features.

    loss = -mean over tokens of cos(P(tokens), target)

REPA (arXiv 2410.06940): P is an MLP of two hidden layers.  iREPA: P is one
convolution over the grid of tokens, and what all places share is taken from the target,

    target = (f - gamma mean f) / (std f + 1e-6)        over the places of one image, per channel.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Features = Callable[[int, Tensor, Tensor], Tensor]
"""(step, rows (B,), x (B, C, H, W)) -> features (B, D, g, g) of the images of these rows."""


def spatially_normalised(features: Tensor, gamma: float) -> Tensor:
    """Features (B, D, g, g) less gamma times their mean over places, over their deviation there."""
    mean = features.mean((2, 3), keepdim=True)
    return (features - gamma * mean) / (features.std((2, 3), keepdim=True) + 1e-6)


class Alignment(nn.Module):
    """The projector, and the term of the loss.

    Use: ``alignment.watch(network.blocks[7])`` once, then set ``alignment.target`` to the
    (B, D, g, g) features of the batch's images before each step, and call it after the pass.

    Args:
        width: width of the network's tokens.
        features: D.
        grid: patches on a side of the network; features of another grid are resized to it.
        projector: mlp or conv.
        hidden: width of the MLP.
        kernel: side of the convolution.
        gamma: share of the mean over places that is taken off; None: no normalisation.
    """

    def __init__(
        self,
        width: int,
        features: int,
        grid: int,
        projector: Literal["mlp", "conv"] = "mlp",
        hidden: int = 2048,
        kernel: int = 3,
        gamma: float | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.gamma = grid, gamma
        # A convolution over one place is a linear layer.
        widths = (width, hidden, hidden, features) if projector == "mlp" else (width, features)
        side = 1 if projector == "mlp" else kernel
        layers: list[nn.Module] = []
        for inside, outside in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(inside, outside, side, padding=side // 2), nn.SiLU()]
        self.projector = nn.Sequential(*layers[:-1])
        self.features: Features | None = None
        self.target: Tensor | None = None
        self._tokens: Tensor | None = None

    def watch(self, layer: nn.Module) -> Any:
        """Record the tokens of ``layer`` at passes with gradient; returns the hook's handle."""

        def record(_: nn.Module, __: Any, output: Tensor) -> None:
            if torch.is_grad_enabled():
                self._tokens = output

        return layer.register_forward_hook(record)

    def see(self, step: int, rows: Tensor, x: Tensor) -> None:
        """Target: the features of ``rows`` (B,) of the batch of ``step``, with data x (B, ...)."""
        assert self.features is not None
        self.target = self.features(step, rows, x)

    def project(self, tokens: Tensor) -> Tensor:
        """Projections (B, D, grid, grid) of tokens (B, N, width), those of patches last."""
        patches = tokens[:, -(self.grid**2) :].transpose(1, 2)
        return self.projector(patches.unflatten(2, (self.grid, self.grid)))

    def forward(self) -> Tensor:
        """Minus the mean cosine between projected tokens and target, ()."""
        if self.target is None or self._tokens is None:
            raise ValueError("alignment needs watch(layer), and features of the batch's images")
        projected = self.project(self._tokens[: len(self.target)])
        target = self.target.to(projected)
        if target.shape[-1] != self.grid:
            target = functional.interpolate(
                target, (self.grid, self.grid), mode="bilinear", antialias=True
            )
        if self.gamma is not None:
            target = spatially_normalised(target, self.gamma)
        return -functional.cosine_similarity(projected, target, dim=1).mean()
