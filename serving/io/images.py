"""Encode images as PNG, and write grids of them."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import UsageRefused
from serving.files import staged_file
from serving.io.image_files import require_pillow

Array = NDArray[Any]

_CHANNELS = (1, 3, 4)
_SMALL, _LEGIBLE = 28, 48
"""Images in a grid that are less high or wide, in pixels, are enlarged, and to what at least."""


def is_picture(shape: Sequence[int]) -> bool:
    """Whether rows of a shape are pictures: (height, width) is gray, (height, width, 3) is RGB."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)


def advise_axes(shape: Sequence[int]) -> str:
    """Return how to move the colours of rows that look like (channels, height, width), or ''."""
    looks_like = len(shape) == 3 and shape[0] in _CHANNELS and min(shape[1:]) > max(_CHANNELS)
    if not looks_like:
        return ""
    change = "x[:, 0]" if shape[0] == 1 else "x.transpose(0, 2, 3, 1)"
    return (
        f"rows of {tuple(shape)} look like images with their channels first, but here the last "
        f"axis holds them: if so, save {change}"
    )


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
    require_pillow().fromarray(np.rint(image).clip(0, 255).astype(np.uint8)).save(
        stream, format="PNG"
    )
    return stream.getvalue()


def tile(images: Array, columns: int | None = None) -> NDArray[np.uint8]:
    """Lay out images from 0 to 255, see `is_picture`, as one image, 2 pixels apart.

    Small images are enlarged by a whole factor, so that a person sees what is on them.
    """
    size = min(images.shape[1:3])
    scale = -(-_LEGIBLE // size) if size < _SMALL else 1
    count, height, width, *channels = images.shape
    height, width = scale * height, scale * width
    columns = columns or math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    canvas_shape = (lines * (height + 2) + 2, columns * (width + 2) + 2, *channels)
    canvas = np.full(canvas_shape, 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (
            2 + place * (size + 2)
            for place, size in zip(divmod(index, columns), (height, width), strict=True)
        )
        enlarged = np.rint(image).clip(0, 255).repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height, left : left + width] = enlarged
    return canvas
