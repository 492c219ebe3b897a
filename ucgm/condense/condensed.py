"""A condensed set on disk: an image folder that every command takes, and what belongs to it.

DIR/images/CLASS/000.png   best first
DIR/labels.safetensors     stored views and their logits, where there are any
DIR/observer.safetensors   the classifier that judged, unless it came with an extractor
DIR/condensed.json         every setting, sources, hashes, what each image was
DIR/sheet.png              the set, one class in a row
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
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

MANIFEST, LABELS, OBSERVER = "condensed.json", "labels.safetensors", "observer.safetensors"
FIELDS = {
    "settings": {"labels": str, "factor": int, "crops": int, "match": str},
    "pool": {},
    "observer": {"sha256": str},
    "classes": [str],
    "shape": [int],
    "candidates": [[str]],
}


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Around what writes a set into a temporary folder: one line where there is no space."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the set could not be written: {error}. Make room, or choose a place that can be "
            "written, and run the same command again"
        ) from error


def save_images(images: RealImages, manifest: dict[str, Any], folder: Path) -> None:
    """Images, their sheet and the manifest, into a folder that exists."""
    counts = images.labels.bincount()
    columns = min(10, int(counts.max()))
    rows = []
    for name, pixels in zip(images.class_names, images.pixels.split(counts.tolist()), strict=True):
        place = folder / "images" / name
        place.mkdir(parents=True)
        for number, image in enumerate(pixels):
            to_pil(image).save(place / f"{number:03d}.png")
        blank = pixels.new_full((columns, *pixels.shape[1:]), 255)
        rows.append(torch.cat((pixels, blank))[:columns])
    grid(torch.cat(rows[:20]), columns).save(folder / "sheet.png")
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


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
        with writing():
            save_images(self.images, self.manifest, folder)
            if self.soft is not None:
                held = {**self.soft.views._asdict(), "logits": self.soft.logits}
                save_file({k: v.contiguous() for k, v in held.items()}, folder / LABELS)
            if isinstance(self.observer, ClassifierObserver):
                self.observer.save(folder / OBSERVER)

    @classmethod
    def load(cls, folder: str | Path) -> "CondensedSet":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: it is no such folder, or not whole.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"{folder} is no set of `ucgm condense`: it has no {MANIFEST}")
        manifest = read_json(folder / MANIFEST, FIELDS)
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
            with reading(folder / LABELS):
                held = load_file(folder / LABELS)
            soft = SoftLabels(Views(*(held[k] for k in Views._fields)), held["logits"])
        observer = _observer_of(folder, manifest["observer"])
        if observer.digest != manifest["observer"]["sha256"]:
            raise ValueError(f"the observer of {folder} has other weights than when it was made")
        return cls(images, soft, observer, manifest)


def _observer_of(folder: Path, said: dict[str, Any]) -> Observer:
    """The observer that a manifest names."""
    if "run" in said:
        return DiffusionObserver(load_run(said["run"]))
    if "spec" in said:
        return ExtractorObserver(open_extractor(said["spec"], said["weights"]), said["weights"])
    if not (folder / OBSERVER).is_file():
        raise ValueError(f"{folder} has no {OBSERVER}: copy the one that was made with the set")
    return ClassifierObserver.load(folder / OBSERVER)
