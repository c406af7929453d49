"""What is read of an image file: nothing is lost in silence, and nothing hostile is unpacked."""

import io
import random
import resource
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.errors import DataRefused
from serving.io.image_files import (
    are_image_files,
    decode_image,
    is_image_name,
    read_image,
    read_image_shape,
)
from tests.serving.io.images import encode, frames, png, turned

Array = NDArray[Any]

COLOURS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
GRAY = COLOURS[..., 0]
BITS = GRAY > 127
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "BMP": {},
    "TIFF": {},
    "PPM": {},
    "GIF": {},
    "WEBP": {"lossless": True},
}
SHARE = np.linspace(0, 1, 63, dtype=np.float32).reshape(9, 7)
DEEP = (COLOURS.astype(np.uint16) << 8) + 7
ALPHA = np.dstack([COLOURS, GRAY])
OPAQUE = np.dstack([COLOURS, np.full_like(GRAY, 255)])


@pytest.mark.parametrize("kind", LOSSLESS)
def test_colours_of_every_format_are_those_in_the_file(kind: str) -> None:
    content = encode(COLOURS, kind, **LOSSLESS[kind])
    assert read_image_shape(content) == (9, 7, 3)
    np.testing.assert_array_equal(read_image(content, (9, 7, 3)), COLOURS, strict=True)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_gray_of_every_format_is_that_in_the_file(kind: str) -> None:
    content = encode(GRAY, kind, **LOSSLESS[kind])
    np.testing.assert_array_equal(read_image(content, (9, 7)), GRAY, strict=True)
    threefold = np.dstack([GRAY] * 3)
    np.testing.assert_array_equal(read_image(content, (9, 7, 3)), threefold, strict=True)


def test_a_jpeg_is_read_as_pillow_decodes_it() -> None:
    for pixels in (COLOURS, GRAY):
        content = encode(pixels, "JPEG")
        expected = np.asarray(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(read_image(content, pixels.shape), expected, strict=True)
        assert read_image_shape(content) == pixels.shape


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encode(COLOURS, mode="P"), None),
        (encode(BITS, "PNG"), BITS * np.uint8(255)),
        (encode(BITS, "TIFF"), BITS * np.uint8(255)),
        (png(OPAQUE, 8, 6), COLOURS),
        (png(np.dstack([GRAY, np.full_like(GRAY, 255)]), 8, 4), GRAY),
        (encode(OPAQUE, "WEBP", lossless=True), COLOURS),
        (encode(OPAQUE, "TIFF"), COLOURS),
        (png(GRAY, 8, 3, (b"PLTE", bytes(range(256)) * 3), (b"tRNS", b"\xff" * 256)), None),
    ],
    ids=["palette", "bits", "bits in TIFF", "RGBA", "LA", "RGBA WebP", "RGBA TIFF", "opaque tRNS"],
)
def test_what_eight_bits_hold_is_read(content: bytes, expected: Array | None) -> None:
    shape = read_image_shape(content)
    if expected is None:
        with Image.open(io.BytesIO(content)) as image:
            expected = np.asarray(image.convert("RGBA"))[..., :3]
    assert shape == expected.shape
    np.testing.assert_array_equal(read_image(content, shape), expected, strict=True)


def upright(pixels: Array, orientation: int) -> Array:
    """Turn by the definition: where row 0 and column 0 of the stored pixels belong."""
    if orientation >= 5:  # rows of the file are columns of the picture
        pixels = pixels.swapaxes(0, 1)
    flipped_rows = orientation in (3, 4, 7, 8)  # row 0 at the bottom, or column 0 there
    flipped_columns = orientation in (2, 3, 6, 7)
    pixels = pixels[::-1] if flipped_rows else pixels
    return pixels[:, ::-1] if flipped_columns else pixels


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    """TIFF 6.0, tag 274: where the visual top and left are in the file."""
    settings = {"lossless": True} if kind == "WEBP" else {}
    content = turned(COLOURS, orientation, kind, **settings)
    expected = upright(COLOURS, orientation)
    assert read_image_shape(content) == expected.shape
    np.testing.assert_array_equal(read_image(content, expected.shape), expected, strict=True)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_jpeg_is_turned_upright(orientation: int) -> None:
    plain, content = encode(GRAY, "JPEG"), turned(GRAY, orientation, "JPEG")
    expected = upright(np.asarray(Image.open(io.BytesIO(plain))), orientation)
    np.testing.assert_array_equal(read_image(content, expected.shape), expected, strict=True)


def test_an_image_on_its_side_is_of_another_size() -> None:
    content = turned(COLOURS, 6, "JPEG")
    with pytest.raises(DataRefused, match="upright it has 9x7 pixels"):
        read_image(content, (9, 7, 3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"no"], ids=["cut", "far", "none"]
)
def test_damaged_exif_is_none(exif: bytes) -> None:
    content = encode(GRAY, "JPEG", exif=exif)
    assert read_image_shape(content) == (9, 7)
    assert read_image(content, (9, 7)).shape == (9, 7)


def mpo() -> bytes:
    """A picture with a preview after it, as cameras write it."""
    return frames("MPO", COLOURS, COLOURS[::-1])


def test_the_picture_of_an_mpo_is_its_first() -> None:
    content = mpo()
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(read_image(content, (9, 7, 3)), expected, strict=True)


DEPTH = "bits per channel, and images are read with 8: convert it, or give its values as an array"
REFUSED: dict[str, tuple[bytes, str]] = {
    "RGB of 16 bits": (png(DEEP, 16, 2), f"it has 16 {DEPTH}"),
    "RGBA of 16 bits": (png(np.dstack([DEEP, DEEP[..., 0]]), 16, 6), f"it has 16 {DEPTH}"),
    "LA of 16 bits": (png(DEEP[..., :2], 16, 4), f"it has 16 {DEPTH}"),
    "gray of 16 bits": (png(DEEP[..., 0], 16, 0), f"it has 16 {DEPTH}"),
    "TIFF of 16 bits": (encode(DEEP[..., 0], "TIFF"), f"it has 16 {DEPTH}"),
    "TIFF of floats": (encode(SHARE, "TIFF"), f"it has 32 {DEPTH}"),
    "PPM of 16 bits": (b"P6\n7 9\n65535\n" + DEEP.astype(">u2").tobytes(), f"it has 16 {DEPTH}"),
    "PGM of 10 bits": (b"P5\n7 9\n1023\n" + bytes(126), f"it has 16 {DEPTH}"),
    "PPM of words": (b"P3\n1 1\n1023\n1 2 3\n", f"it has 10 {DEPTH}"),
    "PFM": (b"Pf\n7 9\n-1.0\n" + SHARE.tobytes(), f"it has 32 {DEPTH}"),
    "CMYK": (encode(COLOURS, "JPEG", mode="CMYK"), "its mode is CMYK: save it as gray or RGB"),
    "LAB": (encode(COLOURS, "TIFF", mode="LAB"), "its mode is LAB: save it as gray or RGB"),
    "animated GIF": (frames("GIF", GRAY, GRAY.T[:9, :7]), "it has several frames or pages"),
    "animated PNG": (frames("PNG", COLOURS, COLOURS[::-1]), "it has several frames or pages"),
    "animated WebP": (frames("WEBP", COLOURS, COLOURS[::-1]), "it has several frames or pages"),
    "TIFF of two pages": (frames("TIFF", COLOURS, COLOURS[::-1]), "it has several frames or pages"),
    "AVIF": (encode(COLOURS, "AVIF"), "it is not an image (PNG, JPEG, WebP"),
    "text": (b"text", "it is not an image (PNG, JPEG, WebP"),
    "nothing": (b"", "it is not an image (PNG, JPEG, WebP"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_lost_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataRefused) as caught:
        read_image_shape(content)
    assert message in str(caught.value)
    assert decode_image(content, (9, 7, 3)) is None
    assert decode_image(content, (9, 7)) is None


TRANSPARENT: dict[str, bytes] = {
    "RGBA": png(ALPHA, 8, 6),
    "LA": png(ALPHA[..., 2:], 8, 4),
    "RGB with a transparent colour": png(
        COLOURS, 8, 2, (b"tRNS", COLOURS[0, 0].astype(">u2").tobytes())
    ),
    "gray with a transparent value": png(GRAY, 8, 0, (b"tRNS", struct.pack(">H", GRAY[0, 0]))),
    "palette": png(GRAY, 8, 3, (b"PLTE", bytes(range(256)) * 3), (b"tRNS", bytes(256))),
    "GIF": encode(GRAY // 64, "GIF", mode="P", transparency=0),
    "WebP": encode(ALPHA, "WEBP", lossless=True),
    "TIFF": encode(ALPHA, "TIFF"),
}


@pytest.mark.parametrize("content", TRANSPARENT.values(), ids=TRANSPARENT)
def test_transparency_is_refused(content: bytes) -> None:
    shape = read_image_shape(content)
    with pytest.raises(DataRefused, match="parts of it are transparent: lay it on a background"):
        read_image(content, shape)


def test_colour_is_not_made_gray() -> None:
    with pytest.raises(DataRefused, match="it is in colour, and gray is needed"):
        read_image(encode(COLOURS), (9, 7))
    np.testing.assert_array_equal(read_image(encode(np.dstack([GRAY] * 3)), (9, 7)), GRAY)


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG"])
def test_pixels_that_are_cut_off_are_refused(kind: str) -> None:
    content = encode(COLOURS, kind, **LOSSLESS.get(kind, {}))
    for end in (len(content) // 2, len(content) * 3 // 4):
        with pytest.raises(DataRefused):
            read_image(content[:end], (9, 7, 3))


def bomb(size: int) -> bytes:
    """A PNG of few bytes that says that it has size² pixels."""
    return png(np.zeros((1, 1), np.uint8), 8, 0, size=size)


@pytest.mark.parametrize("size", [9_999, 13_300, 60_000], ids=["1 GB", "1.7 GB", "36 GB"])
def test_a_bomb_is_refused_unopened(size: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in (
        bomb(size),
        struct.pack(
            "<2sIHHIIiiHHIIiiII", b"BM", 58, 0, 0, 54, 40, size, size, 1, 24, 0, 0, 0, 0, 0, 0
        ),
        b"P6 %d %d 255\n" % (size, size),
    ):
        with pytest.raises(DataRefused, match=r"pixels"):
            read_image(content, (9, 7))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("kind", [*LOSSLESS, "JPEG"])
def test_damage_anywhere_is_refused_or_harmless(kind: str) -> None:
    """Every exception but `DataRefused` fails this."""
    whole = turned(COLOURS, 1, kind) if kind in ("PNG", "JPEG", "TIFF") else encode(COLOURS, kind)
    chance = random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 2, 8])):
            content[chance.randrange(len(content))] = chance.choice([0, 127, 255])
        decoded = decode_image(bytes(content), (9, 7, 3))
        assert decoded is None or decoded.shape == (9, 7, 3)


def test_rows_of_bytes_that_are_files_are_known_by_their_start() -> None:
    size = 400
    files = [
        encode(COLOURS, kind, **LOSSLESS.get(kind, {})) for kind in ("PNG", "GIF", "TIFF", "WEBP")
    ]
    padded = [content[:size].ljust(size, b"\0") for content in files]
    jpeg = encode(COLOURS, "JPEG")[: size - 2].ljust(size - 2, b"\0") + b"\xff\xd9"
    bmp = b"BM" + struct.pack("<I", size) + bytes(size - 6)
    raw = [bytes(size), b"BM" + bytes(size - 2), b"RIFF" + bytes(size - 4), b"\xff" * size]
    rows = np.frombuffer(b"".join([*padded, jpeg, bmp, *raw]), np.uint8).reshape(-1, size)
    assert are_image_files(rows).tolist() == [True] * 6 + [False] * 4
    assert not are_image_files(rows[:, :8]).any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.PNG", True), ("a.b.Tif", True), ("a/b.jfif", True), ("a.txt", False), ("png", False)],
)
def test_images_are_known_by_their_suffix(name: str, expected: bool) -> None:
    assert is_image_name(name) == expected
