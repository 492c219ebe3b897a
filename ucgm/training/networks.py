"""The networks of a training: the one that learns, its averages, the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ucgm.objective import Alignment, LogVariance
from ucgm.runs.config import Config
from ucgm.runs.settings import stem_of
from ucgm.runtime.sharding import Sharding, blocks_of
from ucgm.training.alignment import layer_of
from ucgm.training.ema import EMA, frozen_copy
from ucgm.training.sets import SampleLosses


@dataclass
class Networks:
    """The networks of a training, on the device: whole, or this process's part of each."""

    online: nn.Module
    """the one that is trained."""
    ema: EMA
    """the average that is sampled."""
    target: EMA | None
    """the average that the objective learns from, where it is another."""
    tracked: dict[float, EMA]
    """power-function averages by their relative length."""
    teachers: list[nn.Module]
    """frozen, where the objective has any."""
    log_variance: LogVariance | None
    """the learned variance of t, where the objective has one."""
    sets: SampleLosses | None = None
    """the losses of sets of samples, with what they remember, where the objective has any."""
    alignment: Alignment | None = None
    """the projector of representation alignment, where the objective has this term."""

    def named(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by file stem."""
        named = {
            "network": self.online,
            "ema": self.ema.network,
            "target": self.target.network if self.target else None,
            "log_variance": self.log_variance,
            "sets": self.sets,
            "alignment": self.alignment,
        }
        named |= {f"ema_{stem_of(std)}": average.network for std, average in self.tracked.items()}
        return {name: module for name, module in named.items() if module is not None}

    def averages(self) -> list[EMA]:
        """Every average of the weights."""
        return [a for a in (self.ema, self.target, *self.tracked.values()) if a is not None]

    def trained(self) -> dict[nn.Parameter, str]:
        """Every parameter that the optimizer updates, with its name."""
        found = list(self.online.named_parameters())
        for name in ("log_variance", "alignment"):
            if (module := getattr(self, name)) is not None:
                found += module.named_parameters(prefix=name)
        return {p: name for name, p in found if p.requires_grad}


def make_networks(
    config: Config,
    network: nn.Module,
    sharding: Sharding,
    teachers: Sequence[nn.Module] = (),
    alignment: Alignment | None = None,
    sets: SampleLosses | None = None,
) -> Networks:
    """Copies of the new network for all its roles, each moved or sharded before the next is made.

    The trained one goes last, because a sharded network cannot be copied.  ``teachers`` are other
    networks; where there are none, the network as it begins is its own.
    """
    settings, place = config.ema, sharding.place
    ema = EMA(network, settings.decay, settings.warmup, settings.std, place)
    target = log_variance = None
    if config.objective.needs_target and settings.target_decay is not None:
        target = EMA(network, settings.target_decay, settings.warmup, place=place)
    tracked = {std: EMA(network, 0.0, std=std, place=place) for std in settings.tracked}
    if config.objective.needs_teacher and not teachers:
        teachers = [frozen_copy(network)]
    teachers = [place(teacher) for teacher in teachers]
    if config.objective.log_variance:
        place(log_variance := LogVariance(two_time=config.objective.two_time))
    place(network)
    if alignment is not None:  # no copies of the network are made any more
        blocks: Any = network.blocks
        alignment.watch(blocks[layer_of(config, network) - 1])
    networks = Networks(network, ema, target, tracked, teachers, log_variance, sets, alignment)
    compiled = config.train.compile
    if sharding.device.type == "cuda" if compiled is None else compiled:
        # Programs of earlier trainings of this process would count towards the limit below.
        torch._dynamo.reset()
        for module in (network, *teachers, *(a.network for a in networks.averages())):
            compile_blocks(module)
    return networks


def compile_blocks(network: nn.Module) -> None:
    """Compile the repeated blocks in place; names of weights stay, and jvp passes run as before.

    All blocks, and passes on other numbers of rows, share one program.  What is compiled is the
    forward function of a block and not its call, so that the hooks which gather sharded weights
    stay outside.
    """
    # One program for each of: with gradient or without, trained or frozen, precision, many rows or
    # one; beyond the limit torch would go on uncompiled.
    settings = torch._dynamo.config
    limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    setattr(settings, limit, max(32, getattr(settings, limit)))  # the second name is torch 2.6's
    for block in blocks_of(network):
        block.forward = torch.compile(block.forward)
