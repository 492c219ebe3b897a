"""A condensed set on disk: an image folder that every command takes, and what belongs to it.

DIR/images/CLASS/000.png   best first
DIR/labels.safetensors     stored views and their logits, where there are any
DIR/observer.safetensors   the classifier that judged, unless it came with an extractor
DIR/condensed.json         every setting, sources, hashes, what each image was
DIR/sheet.png              the set, one class in a row
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from ucgm.condense.observe import ClassifierObserver, DiffusionObserver, ExtractorObserver, Observer
from ucgm.condense.patches import split
from ucgm.condense.pool import RealImages, open_real
from ucgm.condense.students import SoftLabels, Views
from ucgm.data.pixels import from_uint8, grid, to_pil
from ucgm.evaluation.extractors import open_extractor
from ucgm.runs.checkpoint import load_run
from ucgm.runtime.reading import read_json, reading

MANIFEST = "condensed.json"


def decoded(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """What a student sees of a set: images (N, C, H, W) in [-1, 1] as they are, or their f x f
    patches in the size of the image; and the label of each.
    """
    if factor == 1:
        return images, labels
    patches = torch.cat([split(image[None], factor) for image in images])
    size = images.shape[-1]
    whole = functional.interpolate(patches, size=(size, size), mode="bilinear")
    return whole, labels.repeat_interleave(factor**2)


@dataclass(frozen=True, eq=False)
class CondensedSet:
    """Images (N, C, H, W) uint8 with labels (N,), sorted by class, and how they were made.

    Attributes:
        images: the set.
        soft: stored labels of the decoded images, in their order; None: none are stored.
        observer: the judge.
        manifest: JSON values, see the head of this file.
    """

    images: RealImages
    soft: SoftLabels | None
    observer: Observer
    manifest: dict[str, Any]

    def decoded(self) -> tuple[Tensor, Tensor]:
        """Images (M, C, H, W) in [-1, 1] that students see, and labels (M,)."""
        pixels = from_uint8(self.images.pixels)
        return decoded(pixels, self.images.labels, self.manifest["settings"]["factor"])

    def save(self, folder: Path) -> None:
        """Write all into a folder that exists."""
        counts: dict[int, int] = {}
        for image, label in zip(self.images.pixels, self.images.labels.tolist(), strict=True):
            place = folder / "images" / self.images.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            number = counts[label] = counts.get(label, -1) + 1
            to_pil(image).save(place / f"{number:03d}.png")
        if self.soft is not None:
            held = {**self.soft.views._asdict(), "logits": self.soft.logits}
            save_file({k: v.contiguous() for k, v in held.items()}, folder / "labels.safetensors")
        if isinstance(self.observer, ClassifierObserver):
            self.observer.save(folder / "observer.safetensors")
        columns = min(10, max(counts.values()) + 1)
        rows = [self.images.pixels[self.images.labels == k][:columns] for k in range(len(counts))]
        blank = rows[0].new_full((columns, *rows[0].shape[1:]), 255)
        rows = [torch.cat((row, blank))[:columns] for row in rows[:20]]
        grid(torch.cat(rows), columns).save(folder / "sheet.png")
        (folder / MANIFEST).write_text(json.dumps(self.manifest, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "CondensedSet":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: it is no such folder, or not whole.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"{folder} is no set of `ucgm condense`: it has no {MANIFEST}")
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        channels, size, _ = manifest["shape"]
        images = open_real(str(folder / "images"), size, channels)
        # Folders are listed by name, and classes may have stood in another order.
        places = {name: k for k, name in enumerate(manifest["classes"])}
        labels = torch.tensor([places.get(images.class_names[k], -1) for k in images.labels])
        order = torch.sort(labels, stable=True).indices
        names = tuple(manifest["classes"])
        images = RealImages(images.name, images.pixels[order], labels[order], names)
        if len(images.labels) != len(manifest["candidates"]):
            raise ValueError(
                f"{folder}/images has {len(images.labels)} images and was written with "
                f"{len(manifest['candidates'])}: some are missing or new, make the set again"
            )
        soft = None
        if manifest["settings"]["labels"] == "stored":
            with reading(folder / "labels.safetensors"):
                held = load_file(folder / "labels.safetensors")
            soft = SoftLabels(Views(*(held[k] for k in Views._fields)), held["logits"])
        observer = _observer_of(folder, manifest["observer"])
        if observer.digest != manifest["observer"]["sha256"]:
            raise ValueError(f"the observer of {folder} has other weights than when it was made")
        return cls(images, soft, observer, manifest)


def _observer_of(folder: Path, said: dict[str, Any]) -> Observer:
    """The observer that a manifest names."""
    if "run" in said:
        run = load_run(said["run"])
        path = run.config.objective.transport
        return DiffusionObserver(run.network, path, run.num_classes, run.digest, said["run"])
    if "spec" in said:
        extractor = open_extractor(said["spec"], said["weights"])
        return ExtractorObserver(extractor, said["weights"])
    return ClassifierObserver.load(folder / "observer.safetensors")
