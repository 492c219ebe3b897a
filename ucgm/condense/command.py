"""``ucgm condense``: from a pool of candidates to a set on disk."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ucgm.condense.build import condense_pool
from ucgm.condense.condensed import CondensedSet
from ucgm.condense.config import PRESETS, CondenseConfig
from ucgm.condense.observe import DiffusionObserver, ExtractorObserver, Observer, taught_observer
from ucgm.condense.pool import Chained, GeneratedPool, Pool, RealImages, RealPool, open_sets
from ucgm.evaluation.extractors import open_extractor
from ucgm.generation.command import open_run, protocol_of, samples_of_run
from ucgm.generation.samples import SamplingConfig
from ucgm.runs.checkpoint import Run
from ucgm.runtime.files import new_folder

_DEFAULTS = CondenseConfig()


def condense(
    source: str,
    out_dir: str,
    preset: Literal["default", "rded", "ncfm"] = "default",
    settings: CondenseConfig = _DEFAULTS,
    data: str | None = None,
    held_out: str | None = None,
    size: int | None = None,
    steps: int | None = None,
    mixed: bool = False,
    observer: str | None = None,
    observer_weights: str | None = None,
    observer_steps: int = 1000,
) -> Path:
    """Condense a data set, or the samples of a run, to a few images per class.

    Args:
        source: digits, an npz, a folder or zip of class folders, hub:OWNER/NAME, or a run folder.
        out_dir: where the set goes; must not exist.
        preset: default, or a published method, whose settings are replaced by those that differ
            from the defaults.
        settings: how it is condensed.
        data: real images; those that a run was trained on when left out.
        held_out: real images that the evaluation tests on; those of the data set, or every fifth
            of each class, when left out.
        size: side of the images; that of the first file when left out.
        steps: of the run's sampler; its own when left out.
        mixed: take real images and samples in turn.
        observer: an extractor with logits of the classes, or ``diffusion``, the run itself; a
            classifier that is taught on the real images when left out.
        observer_weights: path of its weights.
        observer_steps: of that teaching.

    Returns:
        the folder.
    """
    changed = {k: v for k, v in vars(settings).items() if v != getattr(_DEFAULTS, k)}
    config = CondenseConfig(**PRESETS[preset] | changed)
    with new_folder(Path(out_dir), "ucgm condense") as temporary:
        is_run = (Path(source) / "config.yaml").is_file()
        run = open_run(source, None, "ema", "cpu") if is_run else None
        real, _ = open_sets(data or source, size, held_out)
        pools: list[Pool] = [] if run is None else [generated_pool(run, config.seed, steps)]
        pools += [RealPool(real, config.seed)] if mixed or run is None else []
        judge = _judge(run, real, observer, observer_weights, config.seed, observer_steps)
        facts = {
            "source": source,
            "data": {"where": data or source, "size": size, "held_out": held_out},
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        found = condense_pool(Chained(pools), real, judge, config, facts)
        found.save(temporary)
    _say(found, Path(out_dir))
    return Path(out_dir)


def generated_pool(run: Run, seed: int, steps: int | None) -> GeneratedPool:
    """Samples of a run as candidates."""
    samples = samples_of_run(run, SamplingConfig(seed=seed), steps)
    return GeneratedPool(samples, protocol_of(run, samples) | {"steps": samples.sampler.steps})


def _judge(
    run: Run | None, real: RealImages, name: str | None, weights: str | None, seed: int, steps: int
) -> Observer:
    """The observer that was asked for, or one taught on the real images."""
    if name is None:
        return taught_observer(real, seed, steps)
    if name != "diffusion":
        return ExtractorObserver(
            open_extractor(name, weights, option="--observer-weights"), weights
        )
    if run is None:
        raise ValueError("observer diffusion is the model of a run: name a run folder")
    if run.shape != real.shape:
        raise ValueError(
            f"observer diffusion sees {run.shape} and the images are {real.shape}: it judges runs "
            "on pixels alone"
        )
    return DiffusionObserver(run)


def _say(found: CondensedSet, folder: Path) -> None:
    """What was made, from what, and where it is."""
    said = found.manifest
    share = said["accepted"] / said["looked_at"]
    print(
        f"{len(found.images.labels)} images of {len(said['classes'])} classes by "
        f"{said['settings']['selector']} from {said['looked_at']:,} candidates ({share:.3f} "
        f"accepted), observer {found.observer.name} {said['observer']['accuracy']:.3f}, "
        f"{said['seconds']['all']:.1f} s\nset:     {folder}/images\npicture: {folder}/sheet.png"
    )
