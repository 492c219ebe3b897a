"""Pixels: reading and cropping, the one rule between float and uint8, and contact sheets.

    to_uint8(x)   = floor(clamp(127.5 x + 128, 0, 255))     (rounds 127.5 (x + 1) to nearest)
    from_uint8(u) = u / 127.5 - 1

so that ``to_uint8(from_uint8(u)) == u`` for all 256 levels.  This is the rule of EDM (2206.00364),
DiT (2212.09748) and SiT (2401.08740); the floor of ``127.5 (x + 1)`` used elsewhere darkens the
mean by half a level.  The function in this file is the only conversion in the package, and the
benchmark prints its name.

The crop is that of ADM (2105.05233), which DiT, SiT, EDM2 and UCGM share: halve with a box filter
while the shorter side is at least twice the size, then one bicubic resize that brings it to the
size, then cut the centre, with the odd pixel on the right and the bottom.  EXIF rotation is
ignored, as there.
"""

import io
import math

import numpy as np
import torch
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

# The formats of data sets: Pillow gives some of the others to other programs.
_WANTED = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
SUFFIXES = tuple(sorted(k for k, v in Image.registered_extensions().items() if v in _WANTED))
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)  # as Pillow was built
_MOST_PIXELS = 2**27  # of an image while it is scaled
UINT8_RULE = "floor(clamp(127.5 x + 128, 0, 255)): round to nearest"


class UnreadableImage(ValueError):
    """The bytes are there, and they are no complete image."""


class NotFinite(ValueError):
    """Pixels hold NaN or infinity, which no rule can turn into a colour."""


def read_image(content: bytes, size: int, channels: int = 3) -> np.ndarray:
    """Decode and crop: the bytes of an image file to (channels, size, size) uint8.

    Args:
        content: a whole file of any format PIL reads.
        size: side of the square in pixels.
        channels: 3 for RGB, 1 for grey.

    Raises:
        UnreadableImage: for a damaged, truncated or foreign file, with PIL's reason, or one so
            narrow that it cannot be scaled.
    """
    image = decode_image(content).convert("RGB" if channels == 3 else "L")
    return np.asarray(center_crop(image, size)).reshape(size, size, channels).transpose(2, 0, 1)


def decode_image(content: bytes) -> Image.Image:
    """The bytes of an image file to 8 bits: mode L where it is grey, else RGB.

    Grey of 16 bits is divided by 257; float grey is white at 1.

    Raises:
        UnreadableImage: for a damaged, truncated or foreign file, with PIL's reason.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.mode[0] not in "IF":
                return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
            values = np.asarray(image).astype(np.float64)
            sixteen = image.mode != "I" or image.format in ("PNG", "PPM")
            white = 1.0 if image.mode == "F" else 65535.0 if sixteen else None
        if white is None or not ((values >= 0) & (values <= white)).all():
            raise ValueError(f"grey values from {values.min()} to {values.max()} have no white")
        return Image.fromarray(np.round(values * (255.0 / white)).astype(np.uint8))
    except UnidentifiedImageError as error:  # its message holds a memory address
        raise UnreadableImage(f"no known image format in {len(content)} bytes") from error
    except Exception as error:  # PIL's decoders raise about anything on damaged bytes
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The centred square of ``size`` pixels, scaled so that the shorter side fits.

    Raises:
        UnreadableImage: so narrow that it cannot be scaled.
    """
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    if width * height > _MOST_PIXELS:
        raise UnreadableImage(f"{image.width}x{image.height} pixels are too narrow for a square")
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1], any shape and float dtype, to uint8; values outside are clamped.

    Raises:
        NotFinite: x holds NaN or infinity.
    """
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise NotFinite(
            f"{bad} of {x.numel()} pixel values are not finite: the network or the sampler "
            "diverged. Look at the training log, or sample in float32."
        )
    return (x.float() * 127.5 + 128.0).clamp_(0.0, 255.0).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 of any shape to float32 in [-1, 1]."""
    return (images.to(torch.float32) / 127.5).sub_(1.0)


def grid(images: Tensor, columns: int | None = None, upscale: int | None = None) -> Image.Image:
    """A contact sheet in reading order, with one white pixel between and around the images.

    Args:
        images: (N, 1 or 3, H, W) uint8.
        columns: images per row; about the square root of N when None.
        upscale: nearest-neighbour factor; when None, tiny images grow to about 48 pixels.

    Returns:
        a PIL image of mode L or RGB.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"a grid needs (N, 1 or 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}; "
            "use Dataset.decode first."
        )
    count, _, height, width = images.shape
    columns = columns or max(1, round(math.sqrt(count)))
    upscale = upscale or max(1, round(48 / max(height, width)))
    images = images.cpu().repeat_interleave(upscale, 2).repeat_interleave(upscale, 3)
    empty = -count % columns  # places of the last row
    cells = functional.pad(images, (1, 0, 1, 0, 0, 0, 0, empty), value=255)
    sheet = rearrange(cells, "(row column) c h w -> c (row h) (column w)", column=columns)
    sheet = functional.pad(sheet, (0, 1, 0, 1), value=255)
    return to_pil(sheet)


def to_pil(image: Tensor) -> Image.Image:
    """(1 or 3, H, W) uint8 to a PIL image of mode L or RGB."""
    array = image.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0).copy())
