"""Samples of a trained run, from its folder to files: ``ucgm sample``.

    run -> samples (:mod:`ucgm.generation.samples`) -> files (:mod:`ucgm.generation.writers`)

Network, sampler, guidance and data come from the run folder; images are written in index order,
and ``protocol.json`` says what decided them.
"""

import hashlib
import json
import shutil
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ucgm.data.dataset import Dataset
from ucgm.data.pixels import UINT8_RULE, grid
from ucgm.data.sets.declared import open_for_sampling
from ucgm.generation.samples import TILE, RowCounter, SampleSet, SamplingConfig
from ucgm.generation.writers import (
    PARTS,
    Format,
    NpzSink,
    PngSink,
    grid_indices,
    names_at,
    save_image,
    sink_of,
)
from ucgm.runs.checkpoint import Run, load_run
from ucgm.runs.config import differences
from ucgm.runs.folder import encoders_of
from ucgm.runs.layers import config_of
from ucgm.runtime.files import claim_folder, plain
from ucgm.runtime.fixed_batches import whole_tiles
from ucgm.runtime.processes import Progress, World, join_world
from ucgm.sampler import Guidance


def samples_of_run(
    run: Run,
    settings: SamplingConfig,
    steps: int | None = None,
    device: str = "cpu",
    data: Dataset | None = None,
) -> SampleSet:
    """The samples of a trained run, with its own sampler and guidance unless told otherwise; its
    ``data`` are opened where they are not given.

    Raises:
        ValueError: for zero steps, a class out of range, an unknown label rule, guidance of a
            model without classes, or by a network of another kind.
    """
    if settings.precision == "tf32" and not device.startswith("cuda"):
        warnings.warn(
            f"precision tf32 is one of NVIDIA's GPUs: on {device} it is fp32.", stacklevel=2
        )
    if data is None:
        data = open_for_sampling(run.config.data, run.run_dir)
    guidance = guidance_of_run(run, settings)
    weaker = _guide_of(run, guidance, device)
    networks = [part.network.to(device) for part in (run, weaker) if part is not None]
    if settings.precision == "fp64":
        networks = [network.double() for network in networks]
    counter = RowCounter()
    guided = guidance.apply(
        counter.counted(networks[0]),
        data.num_classes or None,
        counter.counted(networks[1]) if weaker is not None else None,
    )
    digest = weaker.digest if weaker is not None else None
    samples = SampleSet(guided, run.config.sampler, data, settings, device, counter, digest)
    samples.labels_at(torch.arange(1))
    return samples if steps is None else samples.with_steps(steps)


def open_run(
    run: str | Run,
    checkpoint: int | None,
    weights: str,
    device: str,
    changes: list[str] | None = None,
) -> Run:
    """The run of a folder, or the run itself, with another sampler and guidance if asked for.

    Args:
        run: folder, or a run, which stays as it is.
        checkpoint: training step; the latest when None.
        weights: ema or network.
        device: of the network.
        changes: ``--sampler.KEY VALUE``, ``--guidance.KEY VALUE`` and ``--config FILE``.

    Raises:
        ValueError: a setting without a meaning, or one of another section.
    """
    if not isinstance(run, Run):
        run = load_run(run, step=checkpoint, weights=weights, device=device)
    if not changes:
        return run
    asked = config_of(changes, run.config)
    config = replace(run.config, sampler=asked.sampler, guidance=asked.guidance)
    others = differences(config, asked)
    if others:
        raise ValueError(
            f"only sampler and guidance can be set for a run that is trained, not {others[0]}"
        )
    return replace(run, config=config)


def guidance_of_run(run: Run, settings: SamplingConfig) -> Guidance:
    """The guidance in force: the run's, with the scale of ``settings`` when it has one."""
    if settings.guidance_scale is None:
        return run.config.guidance
    return replace(run.config.guidance, scale=settings.guidance_scale)


def _guide_of(run: Run, guidance: Guidance, device: str) -> Run | None:
    """The run of the weaker network of autoguidance."""
    if guidance.kind != "auto" or guidance.scale == 1.0 or guidance.guide is None:
        return None
    guide = load_run(guidance.guide, device=device)
    for name, one, other in (
        ("states", run.shape, guide.shape),
        ("classes", run.num_classes, guide.num_classes),
        ("path", run.config.objective.transport, guide.config.objective.transport),
    ):
        if one != other:
            raise ValueError(
                f"the guide {guidance.guide} has the {name} {other} and {run.run_dir} has {one}: "
                "autoguidance needs a weaker network of the same kind."
            )
    return guide


def protocol_of(run: Run, samples: SampleSet) -> dict[str, Any]:
    """What decides the pixels of a set of samples, except the number of steps."""
    settings = plain(asdict(samples.settings))
    sampler = plain(asdict(samples.sampler))
    sampler.pop("steps")
    transport = sampler.pop("transport")
    guide = {} if samples.guide_digest is None else {"guide_sha256": samples.guide_digest}
    known = encoders_of(run.run_dir)
    return (guide | ({"trained_on": known} if known else {})) | {
        "weights": run.weights,
        "weights_sha256": run.digest,
        "training_step": run.step,
        "data": samples.data.name,
        "transport": {"class": type(samples.sampler.transport).__name__, **transport},
        "sampler": sampler,
        "guidance": plain(asdict(guidance_of_run(run, samples.settings))),
        **{key: settings[key] for key in ("seed", "labels", "classes")},
        "num_classes": samples.data.num_classes,
        **{key: settings[key] for key in ("precision", "tile")},
        "uint8": UINT8_RULE,
    }


def sample_run(
    run_dir: str,
    num_images: int = 100,
    steps: int | None = None,
    settings: SamplingConfig | None = None,
    out_dir: str | None = None,
    batch_size: int = TILE,
    format: Format | None = None,
    weights: str = "ema",
    checkpoint: int | None = None,
    device: str | None = None,
    changes: list[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Sample images of a trained run to a folder; returns the folder.

    Args:
        run_dir: folder of the run.
        num_images: how many; image i is the same whatever the number.
        steps: steps of the sampler; the run's own when left out.
        settings: how it is sampled.
        out_dir: where they go; RUN/samples/... when left out.
        batch_size: images held at a time, rounded up to whole tiles; no part of the result.
        format: png (one file per image and a grid), npz (arr_0 images, arr_1 labels), or latents
            (npz of float32 as the autoencoder takes them); png when left out, but latents where
            the run knows no autoencoder.
        weights: ema or network.
        checkpoint: training step of the checkpoint; the latest when left out.
        device: cpu, cuda, ...; the fastest there is when left out.
        changes: words such as --sampler.order 2 or --config FILE, over the run's settings.
        overwrite: replace what another command put into the folder.
    """
    if num_images < 1 or batch_size < 1:
        raise ValueError("num_images and batch_size must be at least 1.")
    world, settings = join_world(device), settings or SamplingConfig()
    run = open_run(run_dir, checkpoint, weights, world.device, changes)
    samples = samples_of_run(run, settings, steps, world.device)
    steps = samples.sampler.steps
    protocol = protocol_of(run, samples) | {"steps": steps, "num_images": num_images}
    name = f"step_{run.step:07d}_{weights}_steps_{steps:02d}_seed_{settings.seed}"
    if changes or settings != SamplingConfig(seed=settings.seed):
        made = {key: value for key, value in protocol.items() if key != "num_images"}
        name += "_" + fingerprint(made)[:8]
    folder = Path(out_dir or run.run_dir / "samples" / name)
    format = format or ("png" if samples.data.decodes else "latents")
    with world.writes(folder, "ucgm sample"):
        if world.first:
            claim_folder(folder, protocol, overwrite)
            # Those of a job that was stopped, which may have been cut elsewhere.
            shutil.rmtree(folder / PARTS, ignore_errors=True)
        world.wait()
        sink = sink_of(format, folder)
        sheet = _draw(samples, num_images, batch_size, sink, world, latent=format == "latents")
        world.wait()
        if world.first:
            path = sink.close(samples.labels_at(torch.arange(num_images)))
            print(f"{'latents:' if sheet is None else 'images: '} {path}")
            if sheet is not None:
                place = save_image(sheet, path.parent / "grid.png")
                print(f"picture: {place}{_rows_of(samples, num_images)}")
    return folder


def _rows_of(samples: SampleSet, count: int) -> str:
    """What the rows of a contact sheet of ``count`` samples are, in brackets; of one, nothing."""
    names = names_at(samples, grid_indices(samples, count)[:, 0])
    return f" (from the top: {', '.join(names)})" if len(names) > 1 else ""


def fingerprint(protocol: dict[str, Any]) -> str:
    """sha256 of a protocol."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def _draw(
    samples: SampleSet,
    count: int,
    batch_size: int,
    sink: PngSink | NpzSink,
    world: World,
    latent: bool,
) -> Image.Image | None:
    """Write this process's share of the first ``count`` samples; the first makes a contact sheet.

    Images of the sheet that others drew it draws again, which gives the same.
    """
    if not latent:
        samples.data.decode(torch.zeros(1, *samples.data.shape))  # fails before the work is done
    share = world.share(torch.arange(count).split(whole_tiles(batch_size, samples.settings.tile)))
    label = f"{samples.sampler.steps} steps:"
    progress = Progress(sum(map(len, share)), label, not world.first, count)
    indices = grid_indices(samples, count)
    shown = indices.flatten().tolist() if world.first and not latent else []
    kept: dict[int, Tensor] = {}
    for part in share:
        values = samples.raw_latents(part) if latent else samples.images(part)
        sink.write(part, values)
        kept |= {i: v for i, v in zip(part.tolist(), values, strict=True) if i in shown}
        progress.add(len(part))
    if not shown:
        return None
    missing = torch.tensor(sorted(set(shown) - kept.keys()), dtype=torch.int64)
    if len(missing):
        kept |= dict(zip(missing.tolist(), samples.images(missing), strict=True))
    return grid(torch.stack([kept[i] for i in shown]), min(10, indices.shape[1]))
