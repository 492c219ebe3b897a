"""Runs with closed-form networks, so that sampling and scores have known answers.

On the linear path F = z - x, and for data that are the points x_i of class y the best prediction is

    x_hat = sum_i softmax_i( -|x_t - (1 - t) x_i|^2 / (2 t^2) ) x_i,    F = (x_t - x_hat) / t.

A sampler that follows it ends on a training image: the perfect memoriser.
"""

import torch
from torch import nn

from ucgm.data import Digits
from ucgm.nn import DiTConfig
from ucgm.runs.checkpoint import Run
from ucgm.runs.config import Config
from ucgm.sampler import Guidance, Sampler


class Memoriser(nn.Module):
    """The closed-form network of the digits' training images; ``shift`` permutes the labels."""

    def __init__(self, shift=0, noise=0.0, split="train"):
        super().__init__()
        data = Digits(split).open()
        self.register_buffer("points", data.x.flatten(1))
        self.y, self.shift, self.noise = data.y, shift, noise

    def forward(self, x_t, t, y, s=None):
        flat, time = x_t.flatten(1), t.clamp_min(1e-3)[:, None]
        points = self.points.to(x_t.dtype)
        distance = (flat[:, None] - (1 - time[:, None]) * points[None]).square().sum(2)
        wrong = self.y[None] != ((y + self.shift) % 10)[:, None]
        wrong &= (y < 10)[:, None]  # the null label: all classes
        logits = (-distance / (2 * time**2)).masked_fill(wrong, -torch.inf)
        x_hat = logits.softmax(dim=1) @ points
        return ((flat - x_hat) / time).reshape(x_t.shape)


class Affine(nn.Module):
    """Cheap and smooth: F = x_t - m_y with a fixed image per class; counts its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer(
            "means", torch.randn(11, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        )
        self.calls = 0

    def forward(self, x_t, t, y, s=None):
        self.calls += 1
        return (x_t - 0.5 * self.means.to(x_t.dtype)[y]) * (1 + t[:, None, None, None])


def perturbed_dit(size="N/2", scale=0.05, **inputs):
    """A small DiT away from its start, where the output is zero."""
    torch.manual_seed(0)
    network = DiTConfig(size=size, **inputs).build((1, 8, 8), 10)
    generator = torch.Generator().manual_seed(0)
    for value in network.parameters():
        value.data += scale * torch.randn(value.shape, generator=generator)
    return network


def make_run(folder, network=None, digest="0" * 64, guidance=None, **sampler):
    config = Config(
        data=Digits(), sampler=Sampler(**{"steps": 2, **sampler}), guidance=guidance or Guidance()
    )
    network = (network or Affine()).eval()
    return Run(folder, config, network, 7, "ema", digest, (1, 8, 8), 10)
