"""FID against the number of steps.

    for every number of steps, for every repeat r:
        samples r n .. (r + 1) n - 1, the same indices for every number of steps
        -> chunks of features (:mod:`ucgm.evaluation.chunks`), shared by all processes
        -> their float64 sums (count, sum, outer product) -> scores

Equal indices make the curve a paired comparison: at n = 1,000 the spread of a difference between
two step counts is a fifth of that of independent samples.  Repeats are disjoint index ranges; their
mean, standard deviation and minimum are reported, never one of them under the name of another.
"""

import itertools
import platform
import resource
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch

from ucgm.evaluation.chunks import CHUNK, GeneratedImages
from ucgm.evaluation.evaluators import Evaluators
from ucgm.evaluation.image_sets import DatasetImages
from ucgm.evaluation.references import open_evaluators, statistics_of
from ucgm.evaluation.report import write_report
from ucgm.evaluation.report.saved import read_report
from ucgm.evaluation.scoring import MetricConfig
from ucgm.evaluation.sweep import FeatureExtraction, Part
from ucgm.generation.command import fingerprint, open_run, protocol_of, samples_of_run
from ucgm.generation.samples import SampleSet, SamplingConfig
from ucgm.runs.checkpoint import Run
from ucgm.runtime.files import ALONE, TOGETHER
from ucgm.runtime.processes import World, join_world
from ucgm.runtime.values import Count, Range, checked

NFE_CONVENTION = (
    "NFE = network rows evaluated per image, counted at the network: an evaluation under "
    "classifier-free guidance or autoguidance counts 2, one outside the guidance interval 1."
)


def benchmark(
    run: str | Run,
    steps: list[int] | None = None,
    num_images: int = 2000,
    repeats: int = 1,
    settings: SamplingConfig | None = None,
    metrics_config: MetricConfig | None = None,
    out_dir: str | Path | None = None,
    batch_size: int = 256,
    chunk_size: int = CHUNK,
    weights: str = "ema",
    checkpoint: int | None = None,
    keep_features: bool = True,
    device: str | None = None,
    part: str | None = None,
    changes: list[str] | None = None,
) -> dict[str, Any]:
    """FID and its companions against the number of steps, with pictures.

    Args:
        run: folder of the run, or the run itself.
        steps: numbers of steps; 1 2 4 8 16 when left out.
        num_images: per number of steps; papers use 50000.
        repeats: disjoint sets of samples, for mean and spread.
        settings: how it is sampled.
        metrics_config: what it is measured with.
        out_dir: where the report goes; a folder under RUN/benchmark when left out.
        batch_size: images held at a time by a process; no part of the result.
        chunk_size: samples between two points from which a stopped command goes on.
        weights: ema or network.
        checkpoint: training step of the checkpoint; the latest when left out.
        keep_features: keep the features, so that another metric costs no sampling.
        device: cpu, cuda, ...; the fastest there is when left out.
        part: K/N: make the features of one part of the chunks, for independent jobs; no scores.
        changes: words such as --sampler.order 2 or --config FILE, over the run's settings.

    Returns:
        content of ``benchmark.json``, and ``folder``, which alone other processes return.
    """
    world = join_world(device)
    run = open_run(run, checkpoint, weights, world.device, changes)
    counts = check_sizes(steps, num_images, repeats, batch_size)
    mine = _part(part, num_images, chunk_size, keep_features)
    samples = _samples(run, settings or SamplingConfig(), world.device)
    chosen = metrics_config or MetricConfig()
    evaluators = open_evaluators(chosen, run.config.data, samples.data, world.device)
    evaluators.warn_if_few(num_images)
    protocol = protocol_of(run, samples) | evaluators.identity() | {"versions": versions()}
    protocol |= {"num_samples": num_images, "repeats": repeats, "chunk_size": chunk_size}
    folder = Path(out_dir or _default_folder(run, protocol))
    extraction = FeatureExtraction(evaluators.extractor, folder, chunk_size, world, mine)
    result: dict[str, Any] = {}
    with world.writes(folder, "ucgm benchmark", TOGETHER if mine else ALONE):
        rows = _rows(extraction, evaluators, samples, protocol, counts, batch_size)
        if world.first and not mine:
            result = _described(run, protocol, evaluators, chosen)
            result |= {"machine": machine(world, batch_size)}
            _write(folder, result, rows, samples)
            if not keep_features:
                shutil.rmtree(folder / "chunks")
    return result | {"folder": str(folder)}


def _samples(run: Run, settings: SamplingConfig, device: str) -> SampleSet:
    samples = samples_of_run(run, settings, device=device)
    # An autoencoder that is missing fails before the work is done.
    samples.data.decode(torch.zeros(1, *samples.data.shape, device=device))
    return samples


def _default_folder(run: Run, protocol: dict[str, Any]) -> Path:
    count = protocol["num_samples"]
    name = f"step_{run.step:07d}_{run.weights}_n{count}_{fingerprint(protocol)[:8]}"
    return run.run_dir / "benchmark" / name


def _part(text: str | None, num_images: int, chunk_size: int, keep_features: bool) -> Part | None:
    if text is not None and not keep_features:
        raise ValueError(
            "--keep-features false would delete what a part makes: give it to the last command, "
            "the one without --part"
        )
    return None if text is None else Part.of_text(text, -(-num_images // chunk_size))


def _described(
    run: Run, protocol: dict[str, Any], evaluators: Evaluators, metrics_config: MetricConfig
) -> dict[str, Any]:
    """What a report says of the run and of the measure, without rows.

    Scores of held-out real images, where there are any, are the noise floor of the curve.
    """
    real, source = None, None if metrics_config.reference else run.config.data.held_out()
    if source is not None:
        data = source.open()
        possible = evaluators.without("fid_heldout")
        possible = possible.enough(len(data), "held-out images", "the row real")
        scores = possible.score(statistics_of(DatasetImages(data), evaluators.extractor))
        real = {"name": data.name, "num_samples": len(data), "scores": scores}
    elif scores := evaluators.real_scores():
        held_out = next(part.held_out for part in evaluators.parts if part.held_out)
        real = {"name": held_out.name, "num_samples": held_out.gaussian.count, "scores": scores}
    return {
        "schema": 1,
        "name": run.run_dir.name,
        "fingerprint": fingerprint(protocol),
        "protocol": protocol,
        "nfe_convention": NFE_CONVENTION,
        "references": evaluators.references(),
        "metrics": evaluators.metrics,
        "real": real,
    }


def _write(
    folder: Path, result: dict[str, Any], rows: list[dict[str, Any]], samples: SampleSet
) -> None:
    """Write the report of ``rows``, and of the other steps of an earlier one of this measure."""
    if (folder / "benchmark.json").exists():
        earlier, _ = read_report(str(folder))
        if all(earlier.get(key) == result[key] for key in ("fingerprint", "references", "metrics")):
            new = {row["steps"] for row in rows}
            rows = rows + [row for row in earlier["rows"] if row["steps"] not in new]
    result["rows"] = sorted(rows, key=lambda row: (row["steps"], row["repeat"]))
    write_report(folder, result, samples)


def _rows(
    extraction: FeatureExtraction,
    evaluators: Evaluators,
    samples: SampleSet,
    protocol: dict[str, Any],
    steps: Sequence[int],
    batch_size: int,
) -> list[dict[str, Any]]:
    """A row of facts and scores per number of steps and repeat; empty but on the first process.

    A part has none, and says which parts are missing.
    """
    extraction.claim(protocol)
    count, rows = protocol["num_samples"], []
    sets = {
        f"steps_{steps_now:03d}_repeat_{repeat}": (steps_now, repeat)
        for steps_now, repeat in itertools.product(steps, range(protocol["repeats"]))
    }
    for name, (steps_now, repeat) in sets.items():
        source = GeneratedImages(samples.with_steps(steps_now), batch_size)
        indices = torch.arange(repeat * count, (repeat + 1) * count)
        found = extraction.measure(name, source, indices)
        if found is not None:
            statistics, facts = found
            row = {"steps": steps_now, "repeat": repeat, "first_index": repeat * count}
            rows.append(row | facts | {"scores": evaluators.score(statistics)})
    if extraction.part and extraction.world.first:
        print(extraction.state(sets, count), flush=True)
    return rows


def check_sizes(
    steps: Sequence[int] | None, num_images: int, repeats: int, batch_size: int
) -> tuple[int, ...]:
    """The step counts, sorted and unique; 1 2 4 8 16 for None.

    Raises:
        ValueError: for counts below one.
    """
    steps = (1, 2, 4, 8, 16) if steps is None else steps
    if not steps:
        raise ValueError("no number of steps was given: for example --steps 1 2 4 8.")
    checked(Annotated[int, Range(10)], num_images, "num_images")  # for a covariance
    checked(Count, repeats, "repeats")
    checked(Count, batch_size, "batch_size")
    return tuple(sorted(set(checked(tuple[Count, ...], steps, "steps"))))


def versions() -> dict[str, str]:
    """Versions of what moves a number."""
    found = {"python": platform.python_version()}
    for name in ("ucgm", "torch", "numpy", "torch-fidelity"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """Commit of this source (``-dirty``: and changes), where it is a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    tracked = [*git, "ls-files", "--error-unmatch", Path(__file__).name]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(world: World, batch_size: int) -> dict[str, Any]:
    """Where it ran: no part of the fingerprint, a restart may be elsewhere."""
    device = world.device
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        device = f"{device} ({torch.cuda.get_device_name(device)})"
    return {
        "device": device,
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "commit": commit(),
        "peak_memory_mib": round(peak),
    }
