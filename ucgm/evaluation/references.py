"""Where references and evaluators come from: the files given, else the run's own data."""

import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import torch

from ucgm.data import Images
from ucgm.data.dataset import DataConfig, Dataset
from ucgm.evaluation.chunks import FeatureExtractor, empty_moments
from ucgm.evaluation.evaluators import Evaluators
from ucgm.evaluation.extractors import Extractor, Extractors, open_extractor
from ucgm.evaluation.extractors.inception import MissingWeights
from ucgm.evaluation.image_sets import DatasetImages, ImageSet
from ucgm.evaluation.metrics import Reference, load_reference, moments_of
from ucgm.evaluation.metrics.reference import digest_of
from ucgm.evaluation.scoring import METRICS, Evaluator, FeatureStatistics, MetricConfig
from ucgm.runs.config import is_allowed

# Images from which on a reference should be a file.
MANY = 10_000


def open_evaluators(
    metrics_config: MetricConfig,
    config: DataConfig | None,
    data: Dataset | None,
    device: str = "cpu",
) -> Evaluators:
    """An evaluator per extractor, with the run's own data where no reference is named.

    An extractor is the one named, else that of the reference file, else that of the data.

    Args:
        metrics_config: metrics, extractors and files.
        config: data of the run; None when there is no run.
        data: the same, opened.
        device: of the extractors.

    Raises:
        ValueError: for unknown names, references of another extractor, metrics that cannot be.
    """
    choices = metrics_config.each()
    found = []
    for choice in choices:
        name, weights, file, other = choice
        if name is not None:  # one file may hold the statistics of all
            file, other = (
                given or (first if first and _holds_more(first, name) else None)
                for given, first in ((file, choices[0][2]), (other, choices[0][3]))
            )
        found.append(_evaluator((name, weights, file, other), config, data, device))
        if len(choices) > 1:  # they take their turns on the device
            found[-1].extractor.module.to("cpu")
    places = prefixes([evaluator.extractor.name for evaluator in found])
    reasons = [
        part.unavailable(part.extractor.num_classes if data is None else data.num_classes)
        for part in found
    ]
    for name in metrics_config.metrics or ():
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}: choose from {', '.join(METRICS)}.")
        if all(why[name] for why in reasons):  # one of the extractors must be able to
            raise ValueError(f"{name} cannot be computed: {reasons[0][name]}.")
    wanted = set(METRICS if metrics_config.metrics is None else metrics_config.metrics)
    parts = []
    for part, why, prefix in zip(found, reasons, places, strict=True):
        metrics = tuple(name for name in METRICS if name in wanted and not why[name])
        parts.append(replace(part, metrics=metrics, prefix=prefix))
    return Evaluators(tuple(parts), device)


def prefixes(names: list[str]) -> list[str]:
    """Of the outputs of extractors of these ``names``: none of the first, ``name.`` of others.

    Raises:
        ValueError: a name that is there twice.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"an extractor is named twice: {', '.join(names)}.")
    return ["", *(f"{name}." for name in names[1:])]


def _holds_more(path: str, extractor: str) -> bool:
    """Whether a file holds statistics of ``extractor`` beside those of its first one, or a folder
    images, of which every extractor makes its own.
    """
    if Path(path).is_dir():
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return f"{extractor}.mu.npy" in file.namelist()


def _evaluator(
    choice: tuple[str | None, ...], config: DataConfig | None, data: Dataset | None, device: str
) -> Evaluator:
    """Extractor and references of one choice, without metrics so far."""
    name, weights, *files = choice
    sources = [_images_of(path, config) for path in files]
    file, other = (None if source else path for path, source in zip(files, sources, strict=True))
    entry = "fd_dinov2" if name == "dinov2" else "fid"
    reference = None if file is None else load_reference(file, entry, name)
    held_out = None if other is None else load_reference(other, entry, name)
    if name is None and reference is not None:
        name = reference.protocol["extractor_spec"] if reference.extractor else "inception"
        if ":" in name and not is_allowed(name.partition(":")[0]):
            raise ValueError(  # a file does not say which code is run
                f"reference {reference.name} was made with the extractor {name}, which is code: if "
                f"it is yours, say --extractor {name}"
            )
    if reference is None and (config is None or data is None):
        raise ValueError("there is no reference: name one with --reference FILE.")
    extractor = chosen_extractor(name, data.extractor if data else "inception", weights, device)
    named, others = sources
    if reference is None:
        assert config is not None and data is not None
        reference = reference_of(named.open() if named else data, extractor)
        if held_out is None and named is None:
            others = others or config.held_out()
    if others is not None:
        held_out = reference_of(others.open(), extractor)
    for found in (reference, held_out):
        if found is not None:
            found.check(extractor.name, extractor.digest, extractor.dimensions["features"])
    return Evaluator(extractor, (), reference, held_out)


def _images_of(path: str | None, config: DataConfig | None) -> DataConfig | None:
    """The images of a folder, read as those of the run are; None for a file of statistics."""
    if path is None or not Path(path).is_dir():
        return None
    if not isinstance(config, Images):
        raise ValueError(
            f"{path} is a folder, and a reference is a file: `ucgm reference {path} FILE.npz` "
            "makes one, with --size where the images are to be cropped."
        )
    return replace(config, path=path, held_out_path=None)


def chosen_extractor(
    asked: str | None, fitting: str, weights: str | None = None, device: str = "cpu"
) -> Extractor:
    """The extractor that was asked for, or the fitting one; where that is Inception and its weights
    are missing, one that needs none.
    """
    try:
        return open_extractor(asked or fitting, weights, device)
    except MissingWeights:
        if asked is not None:
            raise
        warnings.warn(
            "the weights of Inception are not here and cannot be fetched, so extractor random is "
            "used: its distances order runs on these data and are no FID; --extractor inception "
            "says how to get the weights.",
            stacklevel=2,
        )
        return open_extractor("random", None, device)


def statistics_of(images: ImageSet, extractor: Extractor | Extractors) -> FeatureStatistics:
    """Statistics of all images; their features are held in memory."""
    rows, _ = FeatureExtractor(images, extractor).chunk(torch.arange(len(images)))
    moments = {name: moments_of(rows[name]) for name in empty_moments(extractor)}
    return FeatureStatistics(moments, rows.__getitem__)


def reference_of(data: Dataset, extractor: Extractor) -> Reference:
    """Statistics and feature rows of all images of a data set."""
    if len(data) > MANY:
        warnings.warn(
            f"every process makes the statistics of {data.name} from its {len(data):,} images, in "
            "memory and each time anew: make them once with `ucgm reference` and name the file "
            "with --reference.",
            stacklevel=2,
        )
    found = statistics_of(DatasetImages(data), extractor)
    moments, gaussian = found.moments, found.moments["features"]
    return Reference(
        name=data.name,
        gaussian=gaussian,
        digest=digest_of(gaussian.mean, gaussian.covariance),
        spatial=moments.get("spatial"),
        features=found.rows("features"),
        extractor=(extractor.name, extractor.digest),
        protocol={"data": data.describe()},
    )
