"""Decode image files without losing depth, transparency, frames or orientation.

In: the bytes of a PNG, JPEG, WebP, BMP, GIF, TIFF or PNM file. Out: the pixels as uint8, upright as
EXIF says, (height, width) if gray or (height, width, 3). Colour profiles are not applied. Raises
`DataRefused` for what would be lost, and `UsageRefused` if pillow is missing.
"""

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused, UsageRefused
from serving.files import FILE_READ_ERRORS

Array = NDArray[Any]

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
)
IMAGE_MAGICS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
"""How PNG, JPEG, GIF and TIFF start; the others start like other files too."""
IMAGE_KINDS = "PNG, JPEG, WebP, BMP, GIF, TIFF, PNM"

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # a JPEG may turn out to be MPO
_STARTS = np.frombuffer(b"\x89P\xff\xd8RIBMGIIIMM", np.uint16)
_LEAST = 16
"""Bytes of the smallest image."""
_GRAY_MODES = ("1", "L", "LA")
_MODES = (*_GRAY_MODES, "P", "PA", "RGB", "RGBA")
_BITS = 8
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274  # tags of TIFF and EXIF
_EXIF_MARKS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_QUARTER_TURNS = ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
_TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", *_QUARTER_TURNS), 2))
"""What turns an image upright, by EXIF's orientation."""
_ERRORS: tuple[type[Exception], ...] = (
    *FILE_READ_ERRORS,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    Warning,  # if warnings are errors
    struct.error,
)
"""What Pillow's parsers raise for damaged files."""


class NotGray(DataRefused):
    """An image is in colour, and a gray one is needed."""


def read_image_shape(content: bytes) -> tuple[int, ...]:
    """Read the upright shape of an image from its header: (height, width[, 3]), without 3 if gray.

    Raises:
        DataRefused: it is no image, too large, or pixels of 8 bits would not hold all of it.
        UsageRefused: pillow is missing.
    """
    with _open(content) as image:
        _check(image, content)
        size = _turned_size(image, _find_turn(image, content))
        return size if image.mode in _GRAY_MODES else (*size, 3)


def read_image(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode an image to `shape`; gray becomes three equal channels where `shape` has them.

    Raises:
        DataRefused: as `read_image_shape`, or it is of another shape, damaged or transparent.
        UsageRefused: pillow is missing.
    """
    with _open(content) as image:
        # before anything is decoded, and orientation alone may decode a PNG
        if sorted((image.height, image.width)) != sorted(shape[:2]):
            raise DataRefused(f"it has {image.width}x{image.height} pixels")
        _check(image, content)
        turn = _find_turn(image, content)
        if (size := _turned_size(image, turn)) != shape[:2]:
            raise DataRefused(f"upright it has {size[1]}x{size[0]} pixels")
        try:
            return _read_pixels(image, turn, is_gray=len(shape) == 2)
        except _ERRORS as err:
            raise DataRefused("its pixels are damaged or cut off") from err


def decode_image(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Decode an image like `read_image`; None if that refuses it or `shape` is not an image's.

    Raises:
        NotGray: `shape` is that of a gray image, and this one is in colour.
        UsageRefused: pillow is missing.
    """
    if len(shape) != 2 and shape[2:] != (3,):
        return None
    try:
        return read_image(content, shape)
    except NotGray:
        raise
    except DataRefused:
        return None


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def are_image_files(rows: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which rows of bytes (rows, size) are image files by their first and last bytes."""
    if rows.shape[1] < _LEAST:
        return np.zeros(len(rows), bool)
    starts = np.ascontiguousarray(rows[:, :2]).view(np.uint16)[:, 0]
    found = np.isin(starts, _STARTS)
    for index in np.flatnonzero(found):  # few rows of values begin so
        found[index] = _is_image_file(rows[index].tobytes())
    return found


def _is_image_file(content: bytes) -> bool:
    if content.startswith(b"\xff\xd8\xff"):
        return content.endswith(b"\xff\xd9")
    if content.startswith(b"RIFF"):
        return content[8:12] == b"WEBP"
    if content.startswith(b"BM"):
        return content[2:6] == struct.pack("<I", len(content))
    return content.startswith((b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))


def require_pillow() -> Any:
    """Return `PIL.Image`.

    Raises:
        UsageRefused: pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as err:
        raise UsageRefused("images need pillow: pip install 'vae-pipeline[files]'") from err
    return Image


def _open(content: bytes) -> Any:
    pillow = require_pillow()
    most = pillow.MAX_IMAGE_PIXELS
    try:
        image = pillow.open(io.BytesIO(content), formats=_FORMATS)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as err:
        raise DataRefused(f"it has more than {most:,} pixels") from err
    except _ERRORS as err:
        raise DataRefused(f"it is not an image ({IMAGE_KINDS}), or it is damaged") from err
    if most and image.width * image.height > most:  # Pillow refuses only twice as many
        raise DataRefused(f"it has {image.width}x{image.height} pixels, more than {most:,}")
    return image


def _check(image: Any, content: bytes) -> None:
    """Refuse what 8 bits per channel, or one picture, would not hold."""
    try:
        bits = _count_bits(image, content)
        # a camera's MPO has its picture first, and previews after it
        several = image.format != "MPO" and getattr(image, "is_animated", False)
    except _ERRORS as err:
        raise DataRefused("its header is damaged") from err
    if bits > _BITS:
        raise DataRefused(
            f"it has {bits} bits per channel, and images are read with {_BITS}: convert it, or "
            "give its values as an array (.npy)"
        )
    if several:
        raise DataRefused("it has several frames or pages: save each as an image of its own")
    if image.mode not in _MODES:
        raise DataRefused(f"its mode is {image.mode}: save it as gray or RGB of {_BITS} bits")


def _count_bits(image: Any, content: bytes) -> int:
    """Return the bits per channel in the file: Pillow's mode does not show all of them."""
    if image.format == "PNG":
        return content[24]  # in IHDR, which is always the first chunk
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    if image.mode in ("I", "F"):
        return 32 if image.mode == "F" else 16
    arguments = image.tile[0][3] if image.format == "PPM" else ()
    # the largest value of a PNM file, if it has one
    return int(arguments[1]).bit_length() if isinstance(arguments, tuple) and arguments else _BITS


def _find_turn(image: Any, content: bytes) -> str | None:
    """Return the name of what turns an image upright; damaged EXIF counts as none."""
    if image.format == "TIFF":  # Pillow turns it itself, and gives its size upright
        return None
    if image.format == "PNG" and not any(mark in content for mark in _EXIF_MARKS):
        return None  # otherwise Pillow decodes the pixels to look for EXIF after them
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION))
    except _ERRORS:
        return None


def _turned_size(image: Any, turn: str | None) -> tuple[int, int]:
    size = image.height, image.width
    return size[::-1] if turn in _QUARTER_TURNS else size


def _read_pixels(image: Any, turn: str | None, *, is_gray: bool) -> NDArray[np.uint8]:
    image.load()
    if turn is not None:
        image = image.transpose(require_pillow().Transpose[turn])
    if image.has_transparency_data:
        mode = "LA" if image.mode == "LA" else "RGBA"
        image = image.convert(mode)
        if image.getchannel("A").getextrema()[0] < 255:
            raise DataRefused("parts of it are transparent: lay it on a background")
    if is_gray and image.mode in _GRAY_MODES:
        return np.asarray(image.convert("L"))
    colours = np.asarray(image.convert("RGB"))
    if not is_gray:
        return colours
    if (colours != colours[..., :1]).any():
        raise NotGray("it is in colour, and gray is needed")
    return np.ascontiguousarray(colours[..., 0])
