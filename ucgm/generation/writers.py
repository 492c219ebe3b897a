"""Files of samples: PNG folders, npz files in the form the ADM evaluator reads, contact sheets.

The npz holds ``arr_0`` (N, H, W, C) uint8 and ``arr_1`` (N,) int64 labels, in index order.  It is
a stored (not compressed) zip that is written part by part: 50,000 images of 256x256 pixels are
9.8 GB on disk and never lie in memory together.
"""

import shutil
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ucgm.data.pixels import grid, to_pil
from ucgm.generation.samples import SampleSet
from ucgm.runtime.files import write_atomic

Format = Literal["png", "npz", "latents"]
PARTS = ".parts"  # of an npz, until it is whole


class PngSink:
    """One PNG per image, named by its index: ``000123.png``, and ``labels.csv``.

    Args:
        folder: is made when missing; should hold nothing else, so that other tools can read it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, indices: Tensor, images: Tensor) -> None:
        """Save images (B, 1 or 3, H, W) uint8 under their ``indices`` (B,)."""
        for index, image in zip(indices.tolist(), images, strict=True):
            to_pil(image).save(self.folder / f"{index:06d}.png")

    def close(self, labels: Tensor) -> Path:
        """Write the labels (N,) of all images; call once, after all processes have written."""
        rows = "".join(f"{index:06d}.png,{label}\n" for index, label in enumerate(labels.tolist()))
        write_atomic(self.folder / "labels.csv", "file,label\n" + rows)
        return self.folder


class NpzSink:
    """One npz file in index order, from parts written by any process in any order.

    Args:
        folder: an existing folder.
        file: name of the npz file.
    """

    def __init__(self, folder: Path, file: str = "samples.npz") -> None:
        self.path, self.parts = folder / file, folder / PARTS
        self.parts.mkdir(exist_ok=True)

    def write(self, indices: Tensor, images: Tensor) -> None:
        """Keep images (B, C, H, W) uint8, or latents of that shape in float32, which another
        program will decode, with consecutive ``indices`` (B,).
        """
        values = images.permute(0, 2, 3, 1) if images.dtype == torch.uint8 else images
        np.save(self.parts / f"{int(indices[0]):08d}.npy", values.contiguous().numpy())

    def close(self, labels: Tensor) -> Path:
        """Join parts and labels (N,); call once, after all processes have written."""

        def join(path: Path) -> None:
            arrays = [np.load(part, mmap_mode="r") for part in sorted(self.parts.iterdir())]
            header = np.lib.format.header_data_from_array_1_0(arrays[0])
            header["shape"] = (len(labels), *arrays[0].shape[1:])
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    for array in arrays:
                        member.write(array.tobytes())
                with archive.open("arr_1.npy", "w") as member:
                    np.lib.format.write_array(member, labels.numpy())

        write_atomic(self.path, join)
        shutil.rmtree(self.parts)
        return self.path


def sink_of(format: Format, folder: Path) -> PngSink | NpzSink:
    """The writer of a format."""
    if format == "png":
        return PngSink(folder / "images")
    return NpzSink(folder, "latents.npz" if format == "latents" else "samples.npz")


def save_image(image: Image.Image, path: Path) -> Path:
    """PNG, whole or not at all."""
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG"))
    return path


def grid_indices(samples: SampleSet, count: int = 10**9) -> Tensor:
    """Sample indices (rows, columns) of a contact sheet of at most 10 x 10 of ``count`` images.

    One class per row where labels turn and there are enough of each; else one row.
    """
    classes = len(samples.settings.classes or range(samples.data.num_classes))
    enough = classes if classes <= 10 else 10 * classes
    if classes > 1 and samples.settings.labels == "balanced" and count >= enough:
        rows, columns = min(10, classes), min(10, count // classes)
        return (torch.arange(rows) * classes // rows)[:, None] + classes * torch.arange(columns)
    return torch.arange(min(count, 100)).view(10 if count >= 100 else 1, -1)


def names_at(samples: SampleSet, indices: Tensor) -> list[str]:
    """Of what each of the samples ``indices`` (n,) is: its class, or the number of the sample."""
    if samples.data.num_classes == 0:
        return [f"sample {index}" for index in indices.tolist()]
    names = samples.data.class_names
    labels = samples.labels_at(indices).tolist()
    return [f"class {names[label] if label < len(names) else label}" for label in labels]


def save_grid(samples: SampleSet, path: Path) -> Tensor:
    """The contact sheet as PNG; returns its first column (rows, C, H, W) for the strip."""
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
