"""Where references and judges come from: the files given, else the run's own data."""

import torch
from torch import Tensor

from ucgm.data.source import DataConfig, Dataset
from ucgm.extractors import Extractor, open_extractor
from ucgm.metrics import Reference, load_reference, moments_of
from ucgm.metrics.reference import digest_of
from ucgm.scoring import Judge, Measured, Ruler, available_metrics, choose_metrics


def open_judge(
    ruler: Ruler, config: DataConfig | None, data: Dataset | None, device: str = "cpu"
) -> Judge:
    """The judge a ruler describes, with the run's own data where it names no reference.

    The extractor is the one named, else that of the reference file, else that of the data.

    Args:
        ruler: the choices.
        config: data of the run; None when there is no run.
        data: the same, opened.
        device: of the extractor.

    Raises:
        ValueError: for unknown names, references of another extractor, metrics that cannot be.
    """
    name = ruler.extractor
    entry = "fd_dinov2" if name == "dinov2" else "fid"
    reference = None if ruler.reference is None else load_reference(ruler.reference, entry)
    held_out = None if ruler.held_out is None else load_reference(ruler.held_out, entry)
    if name is None and reference is not None and reference.extractor is not None:
        name = reference.extractor[0]
    default = data.extractor if data is not None else "inception"
    extractor = open_extractor(name or default, ruler.weights, device)
    if reference is None:
        if config is None or data is None:
            raise ValueError("there is no reference: name one with --reference FILE.")
        reference = reference_of(data, extractor)
        source = config.held_out()
        if held_out is None and source is not None:
            held_out = reference_of(source.open(), extractor)
    for found in (reference, held_out):
        if found is not None:
            found.check(extractor.name, extractor.digest, extractor.dimensions["features"])
    num_classes = extractor.num_classes if data is None else data.num_classes
    available = available_metrics(extractor, reference, held_out, num_classes)
    return Judge(extractor, choose_metrics(ruler.metrics, available), reference, held_out)


def measure(outputs: dict[str, Tensor], labels: Tensor | None = None) -> Measured:
    """Measured of extractor outputs that are in memory."""
    rows = dict(outputs) if labels is None else {**outputs, "labels": labels}
    spatial = moments_of(outputs["spatial"]) if "spatial" in outputs else None
    return Measured(moments_of(outputs["features"]), spatial, rows.__getitem__)


def extract_dataset(
    data: Dataset, extractor: Extractor, batch_size: int = 1000
) -> tuple[dict[str, Tensor], Tensor]:
    """Extractor outputs and labels of all images of a data set.

    Raises:
        ValueError: when the data set does not hold real images (lossy latents).
    """
    if not data.exact:
        raise ValueError(
            f"{data.name} holds latents, their decoded images are no reference: give a reference "
            "file made by `ucgm reference` from the images."
        )
    parts, labels = [], []
    for indices in torch.arange(len(data)).split(batch_size):
        x, y = data.__getitems__(indices)
        parts.append(extractor(data.decode(x)))
        labels.append(y)
    outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return outputs, torch.cat(labels)


def reference_of(data: Dataset, extractor: Extractor) -> Reference:
    """Statistics and feature rows of all images of a data set."""
    outputs, _ = extract_dataset(data, extractor)
    measured = measure(outputs)
    return Reference(
        name=data.name,
        gaussian=measured.gaussian,
        digest=digest_of(measured.gaussian),
        spatial=measured.spatial,
        features=outputs["features"],
        extractor=(extractor.name, extractor.digest),
        protocol={"data": data.describe()},
    )
