"""Observers: classifiers that judge candidates and give soft labels.

Any extractor with logits of the classes is one; a classifier taught on the real images is the
default.  The generating model is one too, by its denoising error, for real images alone: of its own
samples it thinks too well.

    logit_c(x) = -(1 / tau) mean_{t, z} ||F(x_t, t, c) - F_d||^2 / d      the same t, z for all c
"""

import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ucgm.condense.pool import RealImages
from ucgm.condense.students import Classifier, Course, new_student, teach
from ucgm.data.latents.autoencoder import state_digest
from ucgm.data.pixels import from_uint8, to_uint8
from ucgm.evaluation.extractors import Extractor
from ucgm.evaluation.metrics import conditional_accuracy
from ucgm.runs.checkpoint import Run
from ucgm.runtime.reading import reading


class Observer(ABC):
    """Judges images (B, C, H, W) in [-1, 1]."""

    name: str
    digest: str
    num_classes: int

    @abstractmethod
    def observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and features (B, d) of images (B, C, H, W) in [-1, 1]."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same in batches of 256, without gradient; images (N, C, H, W)."""
        parts = [self.observe(x) for x in images.split(256)]
        return torch.cat([logits for logits, _ in parts]), torch.cat([f for _, f in parts])

    def identity(self) -> dict[str, Any]:
        """Name and hash, and what opens it again where it is not kept with the set."""
        return {"name": self.name, "sha256": self.digest}

    def logits(self, images: Tensor) -> Tensor:
        """(N, K) logits of images (N, C, H, W)."""
        return self(images)[0]

    def check(self, images: RealImages, least: float) -> float:
        """Accuracy on at most 2,000 real images.

        Raises:
            ValueError: of another number of classes, or hardly better than chance, which is what
                an observer with its classes in another order is.
        """
        classes = len(images.class_names)
        if self.num_classes != classes:
            raise ValueError(
                f"observer {self.name} knows {self.num_classes} classes and {images.name} has "
                f"{classes}: name one that was trained on these classes"
            )
        count = min(2000, len(images.labels))
        rows = torch.linspace(0, len(images.labels) - 1, count).long()
        logits = self.logits(from_uint8(images.pixels[rows]))
        found = conditional_accuracy(logits, images.labels[rows])
        if found < max(2 / classes, least):
            raise ValueError(
                f"observer {self.name} is right about {found:.3f} of {images.name}, chance is "
                f"{1 / classes:.3f}: its classes stand in another order, or it was trained on "
                f"others ({', '.join(images.class_names[:4])}, ... here)"
            )
        if found < 0.5:
            warnings.warn(
                f"observer {self.name} is right about {found:.3f} of {images.name}: its choice and "
                "its labels are worth little",
                stacklevel=2,
            )
        return found


class ClassifierObserver(Observer):
    """A classifier of this package."""

    def __init__(self, model: Classifier) -> None:
        self.model, self.num_classes = model, model.num_classes
        self.name = model.architecture
        self.digest = state_digest(model.state_dict())

    def observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and features (B, d) of images (B, C, H, W)."""
        features = self.model.features(images)
        return self.model.head(features), features

    def save(self, path: Path) -> None:
        """Weights and kind, as safetensors."""
        model = self.model
        kind = [model.architecture, *map(str, (*model.shape, model.num_classes))]
        save_file(model.state_dict(), path, {"kind": " ".join(kind)})

    @classmethod
    def load(cls, path: Path) -> "ClassifierObserver":
        """What :meth:`save` wrote."""
        with reading(path), safe_open(path, framework="pt") as file:
            architecture, *numbers = (file.metadata() or {})["kind"].split()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        channels, height, width, classes = map(int, numbers)
        model = new_student(architecture, (channels, height, width), classes, 0)  # pyright: ignore
        model.load_state_dict(state)
        return cls(model.eval())


class ExtractorObserver(Observer):
    """An extractor with logits."""

    def __init__(self, extractor: Extractor, weights: str | None = None) -> None:
        if "logits" not in extractor.dimensions:
            raise ValueError(
                f"extractor {extractor.name} has no logits: an observer is a classifier of the "
                "data's own classes"
            )
        self.extractor, self.name, self.digest = extractor, extractor.name, extractor.digest
        self.num_classes, self.weights = extractor.dimensions["logits"], weights

    def identity(self) -> dict[str, Any]:
        """Name, hash, and the words that open it."""
        return super().identity() | {"spec": self.extractor.spec, "weights": self.weights}

    def observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and features (B, d) of images (B, C, H, W), by their uint8."""
        found = self.extractor(to_uint8(images))
        return found["logits"], found["features"]


class DiffusionObserver(Observer):
    """A generating model as a classifier, by its denoising error.

    Args:
        run: loaded.
        times: how many times in [0.1, 0.9] are tried.
        tau: temperature of the logits.
    """

    def __init__(self, run: Run, times: int = 4, tau: float = 0.02) -> None:
        self.run, self.num_classes, self.digest = run, run.num_classes, run.digest
        self.name, self.times, self.tau = "diffusion", torch.linspace(0.1, 0.9, times), tau

    def identity(self) -> dict[str, Any]:
        """Name, hash, and the run."""
        return super().identity() | {"run": str(self.run.run_dir)}

    def observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) of images (B, C, H, W) in the network's space; the features are they."""
        error = torch.zeros(len(images), self.num_classes)
        transport, generator = self.run.config.objective.transport, torch.Generator().manual_seed(0)
        for time in self.times.tolist():
            z = torch.randn(images.shape, generator=generator)
            t = torch.full((len(images),), time)
            x_t = transport.mix(images, z, t)
            wanted = transport.target(images, z, t)
            for label in range(self.num_classes):
                y = torch.full((len(images),), label)
                error[:, label] += (self.run.network(x_t, t, y) - wanted).square().mean((1, 2, 3))
        logits = -error / (len(self.times) * self.tau)
        return logits, logits


def taught_observer(images: RealImages, seed: int, steps: int) -> ClassifierObserver:
    """A convolutional classifier taught on real images with their classes."""
    model = new_student("convolutions", images.shape, len(images.class_names), seed)
    course = Course(steps, seed=seed)
    teach(model, images.pixels, images.labels, course, images.mirrored)
    return ClassifierObserver(model)
