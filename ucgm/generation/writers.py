"""Image files out: PNG folders, and npz files in the form the ADM evaluator reads.

The npz holds ``arr_0`` (N, H, W, C) uint8 and ``arr_1`` (N,) int64 labels, in index order.  It is
a stored (not compressed) zip that is written part by part: 50,000 images of 256x256 pixels are
9.8 GB on disk and never lie in memory together.
"""

import shutil
import zipfile
from pathlib import Path

import numpy as np
from torch import Tensor

from ucgm.data.pixels import to_pil
from ucgm.runtime.files import write_atomic


class PngSink:
    """One PNG per image, named by its index: ``000123.png``, and ``labels.csv``.

    Args:
        folder: is made when missing; should hold nothing else, so that other tools can read it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Forget the parts of a stopped job, which may have been cut elsewhere."""
        for part in self.folder.glob(".labels_*.csv"):
            part.unlink()

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
        write_atomic(self.folder / "labels.csv", lambda path: path.write_text(text))
        for part in parts:
            part.unlink()
        return self.folder


class NpzSink:
    """``samples.npz`` in index order, from parts written by any process in any order.

    Args:
        folder: an existing folder.
    """

    file = "samples.npz"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = folder / ".parts"
        self.parts.mkdir(exist_ok=True)

    def clear(self) -> None:
        """Forget the parts of a stopped job, which may have been cut elsewhere."""
        for part in self.parts.iterdir():
            part.unlink()

    def write(self, indices: Tensor, images: Tensor, labels: Tensor) -> None:
        """Keep images (B, C, H, W) uint8 with consecutive ``indices`` (B,)."""
        self._keep(int(indices[0]), images.permute(0, 2, 3, 1), labels)

    def _keep(self, first: int, values: Tensor, labels: Tensor) -> None:
        for name, array in (("arr_0", values.contiguous()), ("arr_1", labels)):
            with open(self.parts / f"{name}_{first:08d}.npy", "wb") as file:
                np.save(file, array.numpy())

    def close(self) -> Path:
        """Join the parts; call once, after all processes have written."""
        path = self.folder / self.file
        write_atomic(path, self._join)
        shutil.rmtree(self.parts)
        return path

    def _join(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name in ("arr_0", "arr_1"):
                arrays = [np.load(p, mmap_mode="r") for p in sorted(self.parts.glob(f"{name}_*"))]
                shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
                header = {
                    "descr": np.lib.format.dtype_to_descr(arrays[0].dtype),
                    "fortran_order": False,
                    "shape": shape,
                }
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    for array in arrays:
                        member.write(array.tobytes())


class LatentSink(NpzSink):
    """``latents.npz`` likewise: ``arr_0`` (N, C, h, w) float32, for another program to decode."""

    file = "latents.npz"

    def write(self, indices: Tensor, images: Tensor, labels: Tensor) -> None:
        """Keep latents (B, C, h, w) float32 with consecutive ``indices`` (B,)."""
        self._keep(int(indices[0]), images, labels)
