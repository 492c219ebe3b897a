"""Averages of the weights and the optimizer's step, of a DiT-S/2 (32.9M)."""

import copy
from collections.abc import Iterator

import torch
from diffusers.training_utils import EMAModel
from timing import Pair
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ucgm.nn import DiTConfig
from ucgm.runs.settings import OptimizerConfig
from ucgm.training.ema import EMA
from ucgm.training.nonfinite import NonFiniteSkipper, clip_gradients
from ucgm.training.optim import build_optimizer


def pairs(size: str = "S/2") -> Iterator[Pair]:
    """An update of the averages; clipping and a step of AdamW."""
    network = DiTConfig(size=size).build((4, 32, 32), 1000)
    average = EMA(network, 0.9999)
    torchs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
    yield Pair(
        "an average of the weights", "torch swa_utils", average.update,
        lambda: torchs.update_parameters(network),
    )  # fmt: skip
    diffusers = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, foreach=True)
    yield Pair(
        "an average of the weights", "diffusers EMAModel", average.update,
        lambda: diffusers.step(network.parameters()),
    )  # fmt: skip
    other = copy.deepcopy(network)
    for parameter in (*network.parameters(), *other.parameters()):
        parameter.grad = torch.randn_like(parameter)
    settings = OptimizerConfig(lr=1e-4, betas=(0.9, 0.95))
    names = {parameter: name for name, parameter in network.named_parameters()}
    mine, skipper = build_optimizer(settings, names), NonFiniteSkipper(torch.device("cpu"))
    plain = torch.optim.AdamW(
        other.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=settings.weight_decay,
        fused=True,
    )  # fmt: skip

    def ours():
        skipper.step(mine, (), clip_gradients(names, 1.0), 1)

    def theirs():
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        plain.step()

    yield Pair("clip, skip if not finite, AdamW", "torch, fused", ours, theirs)
