"""Sheets of samples, one class per row, and strips of one sample at several numbers of steps."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ucgm.data.pixels import grid
from ucgm.generation.samples import SampleSet
from ucgm.runtime.files import write_atomic


def grid_indices(samples: SampleSet, rows: int = 10, columns: int = 10) -> Tensor:
    """Sample indices (rows x columns) of a contact sheet: one class per row where labels turn."""
    classes = len(samples.classes or range(samples.data.num_classes))
    if classes < 2 or samples.labels != "balanced":
        return torch.arange(rows * columns).view(rows, columns)
    rows = min(rows, classes)
    lead = torch.arange(rows) * classes // rows
    return lead[:, None] + classes * torch.arange(columns)[None, :]


def save_image(image: Image.Image, path: Path) -> Path:
    """PNG, whole or not at all."""
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG"))
    return path


def save_grid(samples: SampleSet, path: Path) -> Tensor:
    """The grid of ``samples`` as PNG; returns its first column (rows, C, H, W) for the strip."""
    indices = grid_indices(samples)
    images = samples.images(indices.flatten(), torch.arange(indices.numel()))
    save_image(grid(images, indices.shape[1]), path)
    return images[:: indices.shape[1]]


def join_grid(samples: SampleSet) -> None:
    """The passes of :func:`save_grid` without decoding: for a process that shares the network."""
    indices = grid_indices(samples).flatten()
    samples.latents(indices, torch.arange(indices.numel()))


def save_strip(columns: list[Tensor], path: Path) -> Path:
    """Rows of equal indices at several step counts, each (N, C, H, W) uint8, as PNG."""
    return save_image(grid(torch.cat(columns), len(columns[0])), path)
