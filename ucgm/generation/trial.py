"""A run tried by hand: some samples under chosen settings, the trajectory of one of them, and the
command that gives the same images, bit for bit.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ucgm.generation.command import guidance_of_run, open_run, samples_of_run
from ucgm.generation.samples import SamplingConfig
from ucgm.runs.checkpoint import Run
from ucgm.sampler import Sampler
from ucgm.sampler.guidance import Network, call
from ucgm.sampler.plan import knots
from ucgm.sampler.sampler import READS, SolverName
from ucgm.transport import Transport


class Choice(NamedTuple):
    """The settings that are tried."""

    steps: int
    guidance: float
    solver: SolverName
    order: int
    stochasticity: float
    extrapolation: float


class Drawn(NamedTuple):
    """Images (n, channels, h, w) uint8, their classes, x_hat of one of them (calls, channels, h, w)
    uint8 at ``times``, the network's passes for an image, seconds, and the command that is equal.
    """

    images: Tensor
    labels: list[int]
    frames: Tensor
    times: list[float]
    passes: float
    seconds: float
    command: str


class Film:
    """``network`` for a sampler, keeping x_hat (1, C, H, W) of the row ``row`` of every call."""

    def __init__(self, network: Network, transport: Transport, row: int) -> None:
        self.network, self.transport, self.row = network, transport, row
        self.num_classes = getattr(network, "num_classes", None)
        self.frames: list[tuple[float, Tensor]] = []

    def at(self, t: float) -> Network:
        """The network to call at time ``t``, as guidance decides it."""
        inner = getattr(self.network, "at", None)
        now = inner(t) if inner else self.network
        a, b = knots(self.transport, [t])[0].estimate(1.0, 0.0)

        def watched(x: Tensor, times: Tensor, y: Tensor | None, s: Tensor | None = None) -> Tensor:
            prediction = call(now, x, times, y, s)
            row = slice(self.row, self.row + 1)
            self.frames.append((t, (a * x[row] + b * prediction[row]).float()))
            return prediction

        return watched


class Trial:
    """A run that is open for trials; ``words`` are options of its commands that stay as they are.

    Raises:
        ValueError: its samples cannot be decoded, or settings without a meaning.
    """

    def __init__(
        self, run: Run, settings: SamplingConfig, device: str, words: Sequence[str] = ()
    ) -> None:
        self.run, self.settings, self.device, self.words = run, settings, device, words
        self.data = samples_of_run(run, settings, device=device).data
        self.data.decode(torch.zeros(1, *self.data.shape, device=device))

    def start(self) -> Choice:
        """The run's own settings."""
        sampler = self.run.config.sampler
        scale = guidance_of_run(self.run, self.settings).scale
        rest = sampler.order, sampler.stochasticity, sampler.extrapolation
        return Choice(sampler.steps, scale, sampler.solver, *rest)

    def draw(
        self, choice: Choice, seed: int, classes: tuple[int, ...], count: int, filmed: int
    ) -> Drawn:
        """The first ``count`` samples of a seed, and the trajectory of sample ``filmed``.

        Raises:
            ValueError: a setting without a meaning.
        """
        if not 0 <= filmed < count:
            raise ValueError(f"the filmstrip is of image {filmed}: choose from 0 to {count - 1}")
        began, changes = time.perf_counter(), _changes(self.run.config.sampler, choice)
        settings = replace(self.settings, seed=seed, classes=classes or None)
        if choice.guidance != self.start().guidance:
            settings = replace(settings, guidance_scale=choice.guidance)
        run = open_run(self.run, None, "", self.device, changes)
        samples = samples_of_run(run, settings, choice.steps, self.device, self.data)
        tile, calls = settings.tile, samples.sampler.nfe
        film = Film(samples.network, samples.sampler.transport, filmed % tile)
        images = replace(samples, network=film).images(torch.arange(count))
        frames = film.frames[filmed // tile * calls :][:calls]
        labels = samples.labels_at(torch.arange(count)).tolist()
        words = ["--num-images", str(count), "--steps", str(choice.steps), *_words(settings)]
        command = ["ucgm", "sample", str(self.run.run_dir), *words, *self.words, *changes]
        return Drawn(
            images,
            labels if samples.data.num_classes else [],
            samples.decode(torch.cat([x_hat for _, x_hat in frames])),
            [t for t, _ in frames],
            samples.counter.rows / count,
            time.perf_counter() - began,
            shlex.join(command),
        )


def _changes(own: Sampler, choice: Choice) -> list[str]:
    """Words of what differs from ``own``; what the solver does not read gets its default."""
    asked, reads = choice._asdict(), READS[choice.solver][1]
    others = set().union(*(known for _, known in READS.values())) - reads
    words = []
    for f in fields(own):
        there = getattr(own, f.name)
        value = asked.get(f.name, f.default if f.name in others else there)
        if value != there and f.name not in ("steps", "churn"):
            words += [f"--sampler.{f.name}", str(value)]
    return words


def _words(settings: SamplingConfig) -> list[str]:
    """The options of these settings, without what is their default."""
    words = []
    for f in fields(settings):
        value = getattr(settings, f.name)
        if value != f.default:
            values = value if isinstance(value, tuple) else (value,)
            words += ["--" + f.name.replace("_", "-"), *map(str, values)]
    return words
