"""uint8 images by number, from anywhere: what ``ucgm evaluate`` and ``ucgm reference`` read.

    digits, digits-test, digits-all   the embedded data
    FILE.npz                          arr_0 (N, H, W, C) uint8, arr_1 labels: ADM's samples and ours
    DIR                               a folder written by ``ucgm sample``, or its ``images``
    DIR, FILE.zip, hub:OWNER/NAME     as :mod:`ucgm.data.sources.listing`

Sizes: with ``size`` every image is scaled and cropped by the rule of :mod:`ucgm.data.pixels`, which
belongs to real data; without, all images must have one size, and nothing is resampled.
"""

import zipfile
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ucgm.data.dataset import Dataset
from ucgm.data.labels import check_labels
from ucgm.data.pixels import center_crop, decode_image
from ucgm.data.sets.digits import DigitsDataset
from ucgm.data.sources.listing import open_source
from ucgm.evaluation.chunks import ImageSource, Stopwatch


class ImageSet(ImageSource):
    """A numbered set of uint8 images.

    Attributes:
        identity: what it is, as JSON: for reports, and to notice that it has changed.
    """

    identity: dict[str, Any]

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def images(self, indices: Tensor) -> Tensor:
        """Images (n, C, H, W) uint8 of ``indices`` (n,)."""

    def timed_images(self, indices: Tensor, watch: Stopwatch) -> Tensor:
        """Images (n, C, H, W) of ``indices`` (n,), reading timed as decoding."""
        with watch.time("decoder", len(indices)):
            return self.images(indices)


class DatasetImages(ImageSet):
    """The images of a data set that holds pixels.

    Raises:
        ValueError: it does not hold real images: lossy latents, or nothing at all.
    """

    def __init__(self, data: Dataset) -> None:
        if len(data) == 0:
            raise ValueError(
                f"the images of {data.name} are not here to compare with: name a file of their "
                "statistics with --reference (see `ucgm reference`)."
            )
        if not data.lossless:
            raise ValueError(
                f"{data.name} holds latents, their decoded images are no reference: give a "
                "reference made by `ucgm reference` from the images."
            )
        self.data = data
        self.identity = {"images": data.describe()}
        # filled in where images are read, so that none is read twice
        self.labels = torch.full((len(data),), -1) if data.num_classes else None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.data)

    def images(self, indices: Tensor) -> Tensor:
        """Decoded samples (n, C, H, W)."""
        x, y = self.data.__getitems__(indices)
        if self.labels is not None:
            self.labels[indices] = y
        return self.data.decode(x)


class NpzImages(ImageSet):
    """``arr_0`` of an npz; stored files (numpy's default) are mapped, not read.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} does not exist: check the path.")
        try:
            with zipfile.ZipFile(path) as archive:
                self.pixels = _member(archive, "arr_0.npy")
                labelled = "arr_1.npy" in archive.namelist()
                labels = _member(archive, "arr_1.npy") if labelled else None
        except Exception as error:  # zip, zlib and numpy have their own
            reason = str(error) or type(error).__name__
            raise ValueError(f"{path} holds no images under arr_0 ({reason}).") from error
        found = f"arr_0 of {path} is {self.pixels.shape} {self.pixels.dtype}"
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or not self.pixels.size:
            raise ValueError(f"{found}, need (N, H, W, C) uint8.")
        if self.pixels.shape[3] not in (1, 3):
            nchw = self.pixels.shape[1] in (1, 3)
            remedy = "move the channels to the end" if nchw else "convert to grey or RGB"
            raise ValueError(f"{found}, need (N, H, W, C) with C of 1 or 3: {remedy}.")
        if labels is not None:
            if labels.shape != (len(self.pixels),):
                raise ValueError(
                    f"arr_1 of {path} is {labels.shape}, need a label for each of "
                    f"{len(self.pixels)} images."
                )
            found = check_labels(labels, lambda i: f"image {i} of {path}")
            self.labels = torch.from_numpy(found)
        state = path.stat()
        self.identity = {"images": path.name, "bytes": state.st_size, "changed": state.st_mtime_ns}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    def images(self, indices: Tensor) -> Tensor:
        """Images of the file."""
        pixels = np.ascontiguousarray(self.pixels[indices.numpy()].transpose(0, 3, 1, 2))
        return torch.from_numpy(pixels)


class FileImages(ImageSet):
    """Image files of a folder, a zip or the Hub.

    Args:
        where: see :func:`ucgm.data.sources.listing.open_source`.
        size: side after scaling and cropping; None: as they are, all of one size.
    """

    def __init__(self, where: str, size: int | None) -> None:
        self.source, self.size = open_source(where), size
        if self.source.content != "images":
            raise ValueError(f"{where} holds {self.source.content}: name a folder of images.")
        if not self.source.unlabelled:
            self.labels = torch.from_numpy(np.asarray(self.source.labels))
        names = [self.source.entry(i).lower() for i in range(len(self.source))]
        self.identity = {
            "images": Path(where).name,
            "list_sha256": self.source.names_digest(),
            "changed_sha256": self.source.contents_digest(),
            "size": size,
            "jpeg_files": sum(name.endswith((".jpg", ".jpeg")) for name in names),
        }
        first = self._file(0)
        self.shape, self.mode = first.size, first.mode

    def __len__(self) -> int:
        """Number of files."""
        return len(self.source)

    def images(self, indices: Tensor) -> Tensor:
        """Decoded files (n, C, H, W), cropped when there is a size."""
        return torch.from_numpy(np.stack([self._pixels(index) for index in indices.tolist()]))

    def _file(self, index: int) -> Image.Image:
        """A file, decoded and cropped, with its name in errors."""
        try:
            image = decode_image(self.source.content_of(index))
            return image if self.size is None else center_crop(image, self.size)
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.source.place(index)} cannot be read: {error}.") from error

    def _pixels(self, index: int) -> np.ndarray:
        """(C, H, W), of the channels and size of the first image."""
        image = self._file(index)
        if self.mode == "L" and image.mode != "L":
            raise ValueError(f"{self.source.place(index)} is in colour, the first image is grey.")
        if image.size != self.shape:
            raise ValueError(
                f"{self.source.place(index)} is {image.width}x{image.height}, the first image "
                f"{self.shape[0]}x{self.shape[1]}: give --size to crop all to one."
            )
        pixels = np.asarray(image.convert(self.mode))
        return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


def open_images(where: str, size: int | None = None) -> ImageSet:
    """The images that ``where`` names, see the head of this file.

    Raises:
        ValueError: nothing there, or no images, with the remedy.
    """
    path = Path(where)
    for folder in (path, path / "images"):
        ours = folder.name == "images" and (folder.parent / "protocol.json").is_file()
        if ours and folder.is_dir() and not (folder / "labels.csv").is_file():
            raise ValueError(f"{folder} is not finished: run its `ucgm sample` again to go on.")
    if (path / "protocol.json").is_file() and (path / "samples.npz").is_file():
        path = path / "samples.npz"
    elif (path / "images" / "labels.csv").is_file():  # beside a contact sheet
        where = str(path / "images")
    if where == "digits" or where.startswith("digits-"):
        images = DatasetImages(DigitsDataset(where.partition("-")[2] or "train"))
    elif path.suffix == ".npz":
        images = NpzImages(path)
    else:
        return FileImages(where, size)
    height, width = images.images(torch.zeros(1, dtype=torch.int64)).shape[2:]
    if size is not None and (height, width) != (size, size):
        raise ValueError(
            f"{images.identity['images']} holds arrays of {width}x{height} pixels, which are not "
            f"cropped to {size}: leave out --size, or give the image files."
        )
    return images


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an npz: mapped where it is stored as it is, else read."""
    info, path = archive.getinfo(name), str(archive.filename)
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version[0] > 1:
            read = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        header = file.tell()
    if info.compress_type != zipfile.ZIP_STORED or fortran or dtype.hasobject:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name.removesuffix(".npy")]
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)  # lengths of the name and of what else stands before
        start = info.header_offset + 30 + header
        start += sum(int.from_bytes(file.read(2), "little") for _ in range(2))
    return np.memmap(path, dtype, "r", start, shape)
