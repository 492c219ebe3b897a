"""Sampling at equal network calls: our loop and scheduler against those of diffusers.

With a network that costs nothing (it returns a tensor that is there already) what is left is the
solver.  Diffusers at its fastest: no dictionary, begin index set (no search for the timestep).
``set_timesteps``, which a pipeline calls for every batch, is part of a call, of both sides.
"""

import functools
from collections.abc import Callable, Iterator

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from timing import Pair
from torch import Tensor

from ucgm import Linear, Sampler, UCGMScheduler
from ucgm.data import DataSpec
from ucgm.generation.samples import SampleSet
from ucgm.nn import DiTConfig
from ucgm.sampler import NAMED

STEPS = 50
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "solver_order": 2}


def in_pipeline(scheduler, network: Callable[..., Tensor], z: Tensor) -> Callable[[], Tensor]:
    """The loop of a pipeline around a scheduler."""

    @torch.no_grad()
    def run():
        scheduler.set_timesteps(STEPS)
        scheduler.set_begin_index(0)
        x = z
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.expand(len(x))), t, x, return_dict=False)[0]
        return x

    return run


def consistency(network: Callable[..., Tensor], z: Tensor, y: Tensor, steps: int):
    """Few steps by hand: predict the data, add fresh noise, on the linear path."""
    times = torch.linspace(1.0, 0.0, steps + 1).tolist()

    @torch.no_grad()
    def run():
        x = z
        for t, s in zip(times, times[1:], strict=False):
            x = x - t * network(x, torch.full((len(x),), t), y)
            x = (1 - s) * x + s * torch.randn_like(x) if s else x
        return x

    return run


def pairs(shape=(16, 4, 32, 32)) -> Iterator[Pair]:
    """Solvers alone, then whole few-step samplings with a network."""
    solvers = {
        "ddim": FlowMatchEulerDiscreteScheduler(),
        "dpmpp_2m": DPMSolverMultistepScheduler(**FLOW),
        "unipc": UniPCMultistepScheduler(**FLOW),
    }
    z, prediction = torch.randn(shape), torch.randn(shape)

    def free(x, t, y=None):
        return prediction

    for name, scheduler in solvers.items():
        theirs, against = in_pipeline(scheduler, free, z), type(scheduler).__name__
        sampler, what = Sampler(Linear(), STEPS, **NAMED[name]), f"{STEPS} steps of {name}"
        yield Pair(f"Sampler, {what}", against, lambda s=sampler: s(free, z), theirs)
        ours = in_pipeline(UCGMScheduler(**NAMED[name]), free, z)
        yield Pair(f"UCGMScheduler, {what}", against, ours, theirs)
    data = DataSpec(shape=(4, 16, 16), num_classes=10).open()
    noise, y = torch.randn(64, *data.shape), torch.arange(64) % 10
    network = DiTConfig(size="T/2").build(data.shape, 10).eval()
    for steps in (1, 2, 4):
        plain = consistency(network, noise, y, steps)
        sampler = Sampler(Linear(), steps, stochasticity=1.0)
        name = f"{steps} calls of a DiT-T/2 on 64 x 4 x 16 x 16"
        yield Pair(
            f"Sampler, {name}", "a plain loop", lambda s=sampler: s(network, noise, y), plain
        )
    samples = SampleSet(network, sampler, data)
    ours = functools.partial(samples.latents, torch.arange(64))
    yield Pair(f"samples by index, {name}", "a plain loop", ours, plain)
