"""Samples by index: sample i depends on (network, sampler, seed, i) and on nothing else.

    label_i  = i mod C  (balanced, any prefix is balanced to one), or a uniform class drawn from i
    noise_i  = the random numbers whose key is (seed, i), see :mod:`ucgm.randomness`
    x_i      = sampler(network, noise_i, label_i),    image_i = uint8(decode(x_i))

so the same indices at 1, 2 and 4 steps are the same samples with more or less work, neither the
batch size nor the number of processes is part of a result, and a stopped job goes on anywhere.
The initial noise is drawn on the CPU, for all devices alike.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ucgm.checkpoint import Run, load_run
from ucgm.data.files import NpzSink, PngSink
from ucgm.data.images import UINT8_RULE, grid
from ucgm.data.source import Dataset
from ucgm.processes import Progress, join_world
from ucgm.randomness import RowRandom
from ucgm.sampler import Guidance, Sampler
from ucgm.sampler.guidance import Network

LabelRule = Literal["balanced", "random"]
Precision = Literal["fp32", "bf16"]


def labels_of(
    indices: Tensor,
    num_classes: int,
    rule: LabelRule = "balanced",
    seed: int = 0,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """Class of each sample index (B,) int64; the null class 0 where there are no classes.

    Args:
        indices: (B,) int64 sample numbers.
        num_classes: classes of the data.
        rule: ``balanced`` gives class ``i mod C``; ``random`` a uniform class from (seed, i).
        seed: of the ``random`` rule.
        classes: draw from these classes only.

    Raises:
        ValueError: for a class outside the data's, or an unknown rule.
    """
    if num_classes == 0:
        if classes:
            raise ValueError("classes were given, but these data have none: leave them out.")
        return torch.zeros_like(indices)
    allowed = torch.arange(num_classes) if classes is None else torch.tensor(list(classes))
    if allowed.numel() == 0:
        raise ValueError("the list of classes is empty: give at least one, or leave it out.")
    outside = [c for c in allowed.tolist() if not 0 <= c < num_classes]
    if outside:
        raise ValueError(f"class {outside[0]} is out of range: choose from 0 to {num_classes - 1}.")
    if rule == "balanced":
        pick = indices % len(allowed)
    elif rule == "random":
        number = RowRandom.for_rows(seed, -2, indices).uniform(1, dtype=torch.float64)[:, 0]
        pick = (number * len(allowed)).long()
    else:
        raise ValueError(f"label rule {rule!r} is unknown: choose balanced or random.")
    return allowed.to(torch.int64)[pick]


@dataclass(frozen=True, eq=False)
class SampleSet:
    """An endless, indexed set of samples.

    Attributes:
        network: with its guidance wrapped around it, in evaluation mode.
        sampler: from noise to data.
        data: gives the shape, the classes and ``decode``.
        seed: of noise and labels.
        labels: rule of :func:`labels_of`.
        classes: restriction of the classes, None for all.
        precision: ``fp32``, or ``bf16`` for autocast of the network; decoding is always float32.
        device: where the network is.
    """

    network: Network
    sampler: Sampler
    data: Dataset
    seed: int = 0
    labels: LabelRule = "balanced"
    classes: tuple[int, ...] | None = None
    precision: Precision = "fp32"
    device: torch.device | str = "cpu"

    def with_steps(self, steps: int) -> "SampleSet":
        """The same samples with another number of steps."""
        if steps < 1:
            raise ValueError(f"the number of steps is {steps}: it must be at least 1.")
        return replace(self, sampler=replace(self.sampler, steps=steps))

    def labels_at(self, indices: Tensor) -> Tensor:
        """Classes (B,) int64 of the samples ``indices``."""
        return labels_of(indices, self.data.num_classes, self.labels, self.seed, self.classes)

    @torch.no_grad()
    def latents(self, indices: Tensor) -> Tensor:
        """Samples (B, C, H, W) float32 in the network's space, on the device."""
        random = RowRandom.for_samples(self.seed, indices.cpu())
        noise = random.normal(*self.data.shape).to(self.device)
        random.keys = random.keys.to(self.device)
        y = self.labels_at(indices.cpu()).to(self.device)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.sampler(self.network, noise, y, random).float()

    @torch.no_grad()
    def images(self, indices: Tensor) -> Tensor:
        """Images (B, channels, height, width) uint8 of the samples ``indices``, on the CPU."""
        return self.data.decode(self.latents(indices)).cpu()


@dataclass(frozen=True)
class Settings:
    """How a run is sampled; None means what the run says.

    Attributes:
        seed: of noise, labels and sampling noise.
        labels: rule of :func:`labels_of`.
        classes: draw these classes only.
        guidance_scale: weight of classifier-free guidance; 1 is off.
        precision: ``fp32``, or ``bf16`` for autocast of the network.
        device: where to run, for example ``cuda``.
    """

    seed: int = 0
    labels: LabelRule = "balanced"
    classes: tuple[int, ...] | None = None
    guidance_scale: float | None = None
    precision: Precision = "fp32"
    device: str = "cpu"


def samples_of_run(run: Run, settings: Settings, steps: int | None = None) -> SampleSet:
    """The samples of a trained run, with its own sampler and guidance unless told otherwise.

    Raises:
        ValueError: for zero steps, a class out of range, an unknown label rule, guidance of a
            model without classes.
    """
    data = run.config.data.open()
    null_label = data.num_classes or None
    network = guidance_of_run(run, settings).apply(run.network.to(settings.device), null_label)
    samples = SampleSet(
        network,
        run.config.sampler,
        data,
        settings.seed,
        settings.labels,
        settings.classes,
        settings.precision,
        settings.device,
    )
    samples.labels_at(torch.arange(1))
    return samples if steps is None else samples.with_steps(steps)


def guidance_of_run(run: Run, settings: Settings) -> Guidance:
    """The guidance in force: the run's, with the scale of ``settings`` when it has one."""
    if settings.guidance_scale is None:
        return run.config.guidance
    return replace(run.config.guidance, scale=settings.guidance_scale)


def protocol_of(run: Run, settings: Settings, samples: SampleSet) -> dict[str, Any]:
    """What decides the pixels of a set of samples, except the number of steps."""
    sampler = plain(asdict(samples.sampler))
    sampler.pop("steps")
    transport = sampler.pop("transport")
    return {
        "weights": run.weights,
        "weights_sha256": run.digest,
        "training_step": run.step,
        "data": samples.data.name,
        "transport": {"class": type(samples.sampler.transport).__name__, **transport},
        "sampler": sampler,
        "guidance": plain(asdict(guidance_of_run(run, settings))),
        "seed": samples.seed,
        "labels": samples.labels,
        "classes": plain(samples.classes),
        "precision": samples.precision,
        "uint8": UINT8_RULE,
    }


def plain(value: Any) -> Any:
    """A tree of dataclasses, mappings and sequences as JSON; other objects by their text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def sample_run(
    run_dir: str,
    num_images: int = 100,
    steps: int | None = None,
    classes: list[int] | None = None,
    seed: int = 0,
    out_dir: str | None = None,
    batch_size: int = 100,
    format: Literal["png", "npz"] = "png",
    guidance_scale: float | None = None,
    labels: LabelRule = "balanced",
    weights: str = "ema",
    checkpoint: int | None = None,
    precision: Precision = "fp32",
    device: str | None = None,
) -> Path:
    """Sample images of a trained run to a folder.

    Args:
        run_dir: folder of the run.
        num_images: how many; image i is the same whatever the number.
        steps: steps of the sampler; the run's own when left out.
        classes: only these classes, in turn.
        seed: of noise and labels.
        out_dir: where they go; RUN/samples/... when left out.
        batch_size: images at a time; no part of the result.
        format: png (one file per image and a grid) or npz (arr_0 images, arr_1 labels).
        guidance_scale: weight of classifier-free guidance; 1 is off, the run's when left out.
        labels: balanced (class i mod C) or random.
        weights: ema or model.
        checkpoint: training step of the checkpoint; the latest when left out.
        precision: fp32 or bf16.
        device: cpu, cuda, ...; the fastest there is when left out.

    Returns:
        the folder.
    """
    if num_images < 1 or batch_size < 1:
        raise ValueError("num_images and batch_size must be at least 1.")
    world = join_world(device)
    only = None if classes is None else tuple(classes)
    settings = Settings(seed, labels, only, guidance_scale, precision, world.device)
    run = load_run(run_dir, step=checkpoint, weights=weights, device=world.device)
    samples = samples_of_run(run, settings, steps)
    steps = samples.sampler.steps
    protocol = protocol_of(run, settings, samples) | {"steps": steps, "num_images": num_images}
    name = f"step_{run.step:07d}_{weights}_steps_{steps:02d}_seed_{seed}"
    folder = Path(out_dir or Path(run_dir) / "samples" / name)
    if world.first:
        claim_folder(folder, protocol)
    world.wait()
    sink = {"png": PngSink, "npz": NpzSink}[format](folder)
    share = world.share(torch.arange(num_images).split(batch_size))
    progress = Progress(sum(map(len, share)), f"{steps} steps:", silent=not world.first)
    for indices in share:
        sink.write(indices, samples.images(indices), samples.labels_at(indices))
        progress.add(len(indices))
    world.wait()
    if world.first:
        where = sink.close()
        print(f"images: {where}\ngrid:   {save_preview(samples, folder / 'grid.png')}")
    return folder


def save_preview(samples: SampleSet, path: Path, rows: int = 10, columns: int = 10) -> Path:
    """A grid of the first samples: one class per row (no classes: reading order)."""
    classes = samples.classes or tuple(range(samples.data.num_classes)) or (0,)
    shown = min(rows, len(classes)) if samples.data.num_classes else rows
    stride = len(classes) if samples.data.num_classes and samples.labels == "balanced" else 0
    if stride:
        indices = torch.arange(columns)[None, :] * stride + torch.arange(shown)[:, None]
    else:
        indices = torch.arange(shown * columns)
    images = torch.cat([samples.images(part) for part in indices.flatten().split(100)])
    grid(images, columns).save(path)
    return path


def claim_folder(folder: Path, protocol: dict[str, Any]) -> Path:
    """Make ``folder`` that of ``protocol``; refuse one that holds anything else."""
    record = folder / "protocol.json"
    if folder.exists() and any(folder.iterdir()):
        if not record.is_file() or json.loads(record.read_text()) != protocol:
            raise ValueError(
                f"{folder} holds other files: nothing was overwritten. Choose another out_dir."
            )
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(protocol, indent=2) + "\n")
    return folder
