"""Classifiers that are taught by a set, and the views that they see.

A view of an image is an affine change of it (12 degrees, 0.85 to 1.15 in size, 8 % of the side),
and, with soft labels, a rectangle of another image's view in its place (CutMix, arXiv 1905.04899).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ucgm.condense.patches import moved
from ucgm.data.pixels import from_uint8
from ucgm.evaluation.metrics import conditional_accuracy

Architecture = Literal["convolutions", "perceptron"]


class Views(NamedTuple):
    """Random numbers of views: matrix (B, 2, 3), partner (B,) rows, box (B, 4) as left, top, right,
    bottom in shares of the side; a box without area mixes nothing.
    """

    matrix: Tensor
    partner: Tensor
    box: Tensor


def draw_views(count: int, mixed: bool, mirrored: bool, generator: torch.Generator) -> Views:
    """Numbers of views of ``count`` images, each mixed with another of them where ``mixed``, half
    of them mirrored where that keeps the class.
    """
    u = torch.rand(count, 8, generator=generator)
    angle = (2 * u[:, 0] - 1) * torch.pi * 12 / 180
    size = 0.85 + 0.3 * u[:, 1]
    matrix = torch.empty(count, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos() / size
    matrix[:, 0, 1], matrix[:, 1, 0] = -angle.sin() / size, angle.sin() / size
    if mirrored:
        matrix[:, :, 0] *= torch.where(u[:, 7:] < 0.5, -1.0, 1.0)
    matrix[:, :, 2] = 2 * 0.08 * (2 * u[:, 2:4] - 1)
    partner = torch.randperm(count, generator=generator)
    half = (u[:, 4:5].sqrt() if mixed else torch.zeros(count, 1)) / 2  # area uniform in [0, 1]
    box = torch.cat((u[:, 5:7] - half, u[:, 5:7] + half), 1).clamp(0, 1)
    return Views(matrix, partner, box)


def show(images: Tensor, others: Tensor, views: Views, other_matrix: Tensor) -> Tensor:
    """Views (B, C, H, W) of images (B, C, H, W).

    Args:
        images: in [-1, 1].
        others: (B, C, H, W) images of the rectangles.
        views: their numbers.
        other_matrix: (B, 2, 3) of the ``others``.
    """
    one, two = (moved(x, m) for x, m in ((images, views.matrix), (others, other_matrix)))
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device) + 0.5)[:, None] / height
    x = (torch.arange(width, device=images.device) + 0.5)[None] / width
    left, top, right, bottom = (side[:, None, None] for side in views.box.to(images).unbind(1))
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    return torch.where(inside[:, None], two, one)


class Classifier(nn.Module):
    """Logits (B, K) of images (B, C, H, W) in [-1, 1], and features before the last layer.

    Args:
        architecture: ``convolutions``: strided, batch norm; ``perceptron``: two layers of 256.
        shape: (C, H, W).
        num_classes: K.
    """

    def __init__(
        self, architecture: Architecture, shape: tuple[int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        channels, side, _ = shape
        self.architecture, self.shape, self.num_classes = architecture, shape, num_classes
        layers: list[nn.Module] = []
        if architecture == "convolutions":
            widths = (32, 64) if side <= 12 else (32, 64, 128) if side <= 40 else (32, 64, 128, 256)
            for i, width in enumerate(widths):
                stride = 1 if side <= 12 and i == 0 else 2
                layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False)]
                layers += [nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten()]
            dimension = 16 * channels
        else:
            shown = min(side, 32)
            layers += [nn.AdaptiveAvgPool2d(shown), nn.Flatten()]
            layers += [nn.Linear(channels * shown**2, 256), nn.ReLU(), nn.Linear(256, 256)]
            layers += [nn.ReLU()]
            dimension = 256
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(dimension, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, d) features of images (B, C, H, W)."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """(B, K) logits of images (B, C, H, W)."""
        return self.head(self.body(images))


@dataclass(frozen=True)
class Course:
    """How a classifier is taught.

    Attributes:
        steps: of AdamW at 2e-3 with a cosine to 0 and weight decay 0.01.
        batch: images per step.
        temperature: of soft labels.
        seed: of weights, batches and views.
    """

    steps: int
    batch: int = 50
    temperature: float = 4.0
    seed: int = 0


Labeller = Callable[[Tensor], Tensor]
"""Logits (B, K) of views (B, C, H, W)."""


class SoftLabels(NamedTuple):
    """Stored views of a set of N images and what the observer said of them.

    views: numbers of (K, N, ...); logits: (K, N, C) float16.
    """

    views: Views
    logits: Tensor


def store_labels(
    images: Tensor, count: int, mirrored: bool, labeller: Labeller, generator: torch.Generator
) -> SoftLabels:
    """Labels of ``count`` views of every image of a set (N, C, H, W) in [-1, 1]."""
    drawn = [draw_views(len(images), True, mirrored, generator) for _ in range(count)]
    logits = []
    for views in drawn:
        others = images[views.partner], views.matrix[views.partner]
        logits.append(labeller(show(images, others[0], views, others[1])).half())
    return SoftLabels(
        Views(*(torch.stack(v) for v in zip(*drawn, strict=True))), torch.stack(logits)
    )


def teach(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    course: Course,
    mirrored: bool,
    soft: Labeller | SoftLabels | None = None,
    augmented: bool = True,
) -> Classifier:
    """Train a classifier, in place, to its last step; returned in evaluation mode.

    Args:
        model: the student, with its first weights.
        images: (N, C, H, W) in [-1, 1], or uint8, of which a batch at a time becomes float.
        labels: (N,) classes, which soft labels replace.
        course: how.
        mirrored: show half of the images mirrored.
        soft: labels of views: asked for at every step, or stored; None: the classes.
        augmented: show views; else, with classes, the images as they are.
    """
    generator = torch.Generator().manual_seed(course.seed)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, course.steps)
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    batch = min(course.batch, len(images))
    for _ in range(course.steps):
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        rows, order = order[:batch], order[batch:]
        if isinstance(soft, SoftLabels):
            k = torch.randint(len(soft.logits), (batch,), generator=generator)
            views = Views(*(value[k, rows] for value in soft.views))
            other_matrix = soft.views.matrix[k, views.partner]
            x, others = (_floats(images[of]) for of in (rows, views.partner))
            shown = show(x, others, views, other_matrix)
            taught: Tensor | None = soft.logits[k, rows].to(shown)
        else:
            views = draw_views(batch, soft is not None, mirrored, generator)
            x = _floats(images[rows])
            if augmented:
                x = show(x, x[views.partner], views, views.matrix[views.partner])
            shown = x
            taught = None if soft is None else soft(shown)
        logits = model(shown)
        if taught is None:
            loss = functional.cross_entropy(logits, labels[rows])
        else:
            loss = soft_loss(logits, taught, course.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def new_student(
    architecture: Architecture, shape: tuple[int, int, int], num_classes: int, seed: int
) -> Classifier:
    """A classifier whose first weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(architecture, shape, num_classes)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images (N, C, H, W), in [-1, 1] or uint8, whose class (N,) has the largest logit."""
    logits = torch.cat([model(_floats(x)) for x in images.split(500)])
    return conditional_accuracy(logits, labels)


def _floats(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], from uint8 where they are that."""
    return from_uint8(images) if images.dtype == torch.uint8 else images


def soft_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(logits / T)) of logits and taught (B, K)."""
    return temperature**2 * functional.kl_div(
        functional.log_softmax(logits / temperature, 1),
        functional.log_softmax(taught / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
