"""Decode PNG and JPEG files, and write grids of images as one PNG."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused, UsageRefused
from serving.files import FILE_READ_ERRORS, staged_file

Array = NDArray[Any]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_IMAGE_FORMATS = ("PNG", "JPEG")
_GRAY_MODES = ("1", "L")
_DECODE_ERRORS: tuple[type[Exception], ...] = (*FILE_READ_ERRORS, DataRefused)
_IMAGE_MODES = (*_GRAY_MODES, "P", "RGB")  # of 8 bits per channel; others would lose information


def is_picture(shape: Sequence[int]) -> bool:
    """Whether rows of a shape are pictures: (height, width) is gray, (height, width, 3) is RGB."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)


def write_grid(path: Path, images: Array, columns: int | None = None) -> None:
    """Write images from 0 to 255, see `is_picture`, as one PNG with `columns` images per line."""
    if not is_picture(images.shape[1:]):
        raise UsageRefused(
            f"a picture needs rows of (height, width) or (height, width, 3), got {images.shape[1:]}"
        )
    content = encode_png(tile(images, columns))
    with staged_file(path) as temporary:
        temporary.write_bytes(content)


def write_pairs(path: Path, upper: Array, lower: Array, columns: int) -> None:
    """Write lines of `upper` images, each above a line of their `lower` counterparts, as one PNG.

    With fewer images than `columns` the lines are shorter; an incomplete last line is left out.
    """
    columns = min(columns, len(upper))
    shown = len(upper) // columns * columns
    starts = range(0, shown, columns)
    lines = [rows[start : start + columns] for start in starts for rows in (upper, lower)]
    write_grid(path, np.concatenate(lines), columns)


def encode_png(image: Array) -> bytes:
    """Encode an image (height, width) or (height, width, 3) with values from 0 to 255."""
    stream = io.BytesIO()
    _pillow().fromarray(np.rint(image).clip(0, 255).astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def read_image_shape(content: bytes) -> tuple[int, ...]:
    """Read the shape of a PNG or JPEG from its header: (height, width[, 3]), without 3 if gray.

    Raises:
        DataRefused: it is neither, has more than 8 bits per channel, or has transparency.
        UsageRefused: pillow is missing.
    """
    with _open_image(content) as image:
        size, mode = (image.height, image.width), image.mode
    if mode not in _IMAGE_MODES:
        raise DataRefused(f"its mode is {mode}: save it as gray or RGB of 8 bits, without alpha")
    return size if mode in _GRAY_MODES else (*size, 3)


def decode_image(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Decode a PNG or JPEG to `shape`, see `is_picture`; None if it is damaged or of another shape.

    Raises:
        UsageRefused: pillow is missing.
    """
    if not is_picture(shape):
        return None
    try:
        with _open_image(content) as image:
            if (image.height, image.width) != shape[:2] or image.mode not in _IMAGE_MODES:
                return None  # before the pixels are decoded
            return np.asarray(image.convert("L" if len(shape) == 2 else "RGB"))
    except _DECODE_ERRORS:
        return None


def tile(images: Array, columns: int | None = None) -> NDArray[np.uint8]:
    """Lay out images from 0 to 255, see `is_picture`, as one image, 2 pixels apart."""
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


def _open_image(content: bytes) -> Any:
    pillow = _pillow()
    try:
        return pillow.open(io.BytesIO(content), formats=_IMAGE_FORMATS)
    except (*FILE_READ_ERRORS, pillow.DecompressionBombError) as err:
        raise DataRefused("it is not a PNG or JPEG") from err


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as err:
        raise UsageRefused("images need pillow: pip install 'vae-pipeline[files]'") from err
    return Image
