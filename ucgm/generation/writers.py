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


class PngSink:
    """One PNG per image, named by its index: ``000123.png``, and ``labels.csv``.

    Args:
        folder: is made when missing; should hold nothing else, so that other tools can read it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, indices: Tensor, images: Tensor, labels: Tensor) -> None:
        """Save images (B, 1 or 3, H, W) uint8 under their ``indices`` (B,)."""
        for index, image in zip(indices.tolist(), images, strict=True):
            to_pil(image).save(self.folder / f"{index:06d}.png")
        part = self.folder / f".labels_{int(indices[0]):08d}.csv"
        rows = zip(indices.tolist(), labels.tolist(), strict=True)
        part.write_text("".join(f"{index:06d}.png,{label}\n" for index, label in rows))

    def close(self) -> Path:
        """Join the labels in index order; call once, after all processes have written."""
        parts = sorted(self.folder.glob(".labels_*.csv"))
        text = "file,label\n" + "".join(part.read_text() for part in parts)
        write_atomic(self.folder / "labels.csv", text)
        for part in parts:
            part.unlink()
        return self.folder


class NpzSink:
    """One npz file in index order, from parts written by any process in any order.

    Args:
        folder: an existing folder.
        file: name of the npz file.
    """

    def __init__(self, folder: Path, file: str = "samples.npz") -> None:
        self.path, self.parts = folder / file, folder / ".parts"
        self.parts.mkdir(exist_ok=True)

    def write(self, indices: Tensor, images: Tensor, labels: Tensor) -> None:
        """Keep images (B, C, H, W) uint8, or latents of that shape in float32, which another
        program will decode, with consecutive ``indices`` (B,).
        """
        values = images.permute(0, 2, 3, 1) if images.dtype == torch.uint8 else images
        for name, array in (("arr_0", values.contiguous()), ("arr_1", labels)):
            np.save(self.parts / f"{name}_{int(indices[0]):08d}.npy", array.numpy())

    def close(self) -> Path:
        """Join the parts; call once, after all processes have written."""
        write_atomic(self.path, self._join)
        shutil.rmtree(self.parts)
        return self.path

    def _join(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name in ("arr_0", "arr_1"):
                arrays = [np.load(p, mmap_mode="r") for p in sorted(self.parts.glob(f"{name}_*"))]
                shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
                header = np.lib.format.header_data_from_array_1_0(arrays[0]) | {"shape": shape}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    for array in arrays:
                        member.write(array.tobytes())


def forget_parts(folder: Path) -> None:
    """Remove the parts of a stopped job in any format, which may have been cut elsewhere."""
    shutil.rmtree(folder / ".parts", ignore_errors=True)
    for part in folder.glob("images/.labels_*.csv"):
        part.unlink()


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
    """Sample indices (rows, columns) of a contact sheet of at most 10 x 10 images.

    One class per row where labels turn; one row where ``count`` samples are too few for that.
    """
    classes = len(samples.settings.classes or range(samples.data.num_classes))
    indices = torch.arange(100).view(10, 10)
    if classes > 1 and samples.settings.labels == "balanced":
        rows = min(10, classes)
        indices = (torch.arange(rows) * classes // rows)[:, None] + classes * torch.arange(10)
    if int(indices.max()) >= count:
        return torch.arange(min(count, indices.numel())).view(1, -1)
    return indices


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
