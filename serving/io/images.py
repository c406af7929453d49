"""Images: decode PNG and JPEG files, and write grids of images as one PNG."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused, UsageRefused
from serving.files import READ_ERRORS, writing

Array = NDArray[Any]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_IMAGE_FORMATS = ("PNG", "JPEG")

_GRAY_MODES = ("1", "L")

_IMAGE_MODES = (*_GRAY_MODES, "P", "RGB")  # of 8 bits a channel: others would lose some


def is_picture(shape: Sequence[int]) -> bool:
    """Whether rows of a shape can be shown: (height, width) is gray, (height, width, 3) is RGB."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)


def write_grid(path: Path, images: Array, columns: int | None = None) -> None:
    """Write images, see `is_picture`, in units of bytes as one PNG, `columns` a line."""
    if not is_picture(images.shape[1:]):
        raise UsageRefused(
            f"a picture needs rows of (height, width) or (height, width, 3), got {images.shape[1:]}"
        )
    content = encode_png(tile(images, columns))
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_pairs(path: Path, upper: Array, lower: Array, columns: int) -> None:
    """Write lines of images, each above the line of its counterparts, as one PNG.

    Where there are fewer images than `columns`, the lines are shorter; a line that would not be
    full is left out.
    """
    columns = min(columns, len(upper))
    shown = len(upper) // columns * columns
    write_grid(path, interleave(upper[:shown], lower[:shown], columns), columns)


def interleave(upper: Array, lower: Array, columns: int) -> Array:
    """Lay lines of `upper` and of `lower` in turn, `columns` images a line, for `tile`."""
    lines = [
        part[start : start + columns]
        for start in range(0, len(upper), columns)
        for part in (upper, lower)
    ]
    return np.concatenate(lines)


def byte_unit(x: Array) -> float:
    """What stretches the values of images to bytes: floats up to 1 are shares of a byte."""
    return 1.0 if x.dtype == np.uint8 or x.max() > 1 else 255.0


def encode_png(image: Array) -> bytes:
    """Encode an image (height, width) or (height, width, 3) in units of bytes."""
    stream = io.BytesIO()
    _pillow().fromarray(np.rint(image).clip(0, 255).astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def read_image_shape(content: bytes) -> tuple[int, ...]:
    """Shape of a PNG or JPEG, from its header: (height, width) if gray, else (height, width, 3).

    Raises:
        DataRefused: it is neither, or has more than 8 bits a channel, or transparency.
        UsageRefused: pillow is missing.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(content), formats=_IMAGE_FORMATS) as image:
            size, mode = (image.height, image.width), image.mode
    except (*READ_ERRORS, pillow.DecompressionBombError) as err:
        raise DataRefused("it is no PNG or JPEG") from err
    if mode not in _IMAGE_MODES:
        raise DataRefused(f"its mode is {mode}: save it as gray or RGB of 8 bits, without alpha")
    return size if mode in _GRAY_MODES else (*size, 3)


def decode_image(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Decode a PNG or JPEG to `shape`, see `is_picture`; None if it is none.

    Raises:
        UsageRefused: pillow is missing.
    """
    pillow = _pillow()
    if not is_picture(shape):
        return None
    try:
        with pillow.open(io.BytesIO(content), formats=_IMAGE_FORMATS) as image:
            if (image.height, image.width) != shape[:2] or image.mode not in _IMAGE_MODES:
                return None  # before its pixels are decoded
            return np.asarray(image.convert("L" if len(shape) == 2 else "RGB"))
    except (*READ_ERRORS, pillow.DecompressionBombError):
        return None


def tile(images: Array, columns: int | None = None) -> NDArray[np.uint8]:
    """Lay images, see `is_picture`, in units of bytes out as one image, 2 pixels apart."""
    count, height, width, *channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    size = (lines * (height + 2) + 2, columns * (width + 2) + 2)
    canvas = np.full((*size, *channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (
            2 + place * (size + 2)
            for place, size in zip(divmod(index, columns), (height, width), strict=True)
        )
        canvas[top : top + height, left : left + width] = np.rint(image).clip(0, 255)
    return canvas


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as err:
        raise UsageRefused("images need pillow: pip install 'vae-pipeline[files]'") from err
    return Image
