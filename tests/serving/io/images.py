"""Image files made by hand or by Pillow, for the tests of what reads them."""

import io
import struct
import zlib
from typing import Any

from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

ORIENTATION = 274


def encode(pixels: Array, kind: str = "PNG", mode: str | None = None, **settings: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, format=kind, **settings)
    return stream.getvalue()


def turned(pixels: Array, orientation: int, kind: str = "PNG", **settings: Any) -> bytes:
    """Encode pixels with the orientation that a camera would write."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(pixels, kind, exif=exif, **settings)


def png(
    pixels: Array,
    depth: int,
    kind: int,
    *chunks: tuple[bytes, bytes],
    size: int | None = None,
) -> bytes:
    """Write a PNG by its specification: big-endian samples, filter 0 before each line."""
    height, width = pixels.shape[:2]
    lines = [b"\0" + line.astype(f">u{depth // 8}").tobytes() for line in pixels]
    header = struct.pack(">IIBBBBB", size or width, size or height, depth, kind, 0, 0, 0)
    body = (b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in body
    )


def frames(kind: str, *pictures: Array) -> bytes:
    stream = io.BytesIO()
    first, *rest = (Image.fromarray(pixels) for pixels in pictures)
    first.save(stream, format=kind, save_all=True, append_images=rest)
    return stream.getvalue()
