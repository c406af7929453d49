"""Pictures: which arrays are some, how they are laid out, and what a file of one holds."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.errors import UsageRefused
from serving.io.array_files import write_array
from serving.io.images import (
    is_picture,
    tile,
    write_grid,
    write_pairs,
)

Array = NDArray[Any]

ROWS = np.arange(5 * 3 * 2, dtype=np.float32).reshape(5, 3, 2) * 8
COLOURS = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 3), dtype=np.uint8)


def encode(pixels: Array, kind: str = "PNG", mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, format=kind)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 2), True), ((3, 2, 3), True), ((3, 2, 1), False), ((6,), False), ((3, 2, 2, 3), False)],
    ids=str,
)
def test_a_picture_is_gray_or_rgb(shape: tuple[int, ...], expected: bool) -> None:
    assert is_picture(shape) == expected


def test_writes_a_picture_of_the_tiles(tmp_path: Path) -> None:
    write_array(tmp_path / "a.png", ROWS)
    write_grid(tmp_path / "b.png", ROWS, columns=5)
    for name, columns in (("a.png", None), ("b.png", 5)):
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.mode) == ("PNG", "L")
            np.testing.assert_array_equal(np.asarray(picture), tile(ROWS, columns), strict=True)


def test_tiles_lie_two_pixels_apart_and_are_rounded_to_bytes() -> None:
    images = np.array([[[-5.0, 0.4]], [[1.6, 254.6]], [[300.0, 7.0]]])
    images = images.repeat(28, 1).repeat(14, 2)
    expected = np.full((62, 62), 255)
    expected[2:30, 2:30] = [0] * 28
    expected[2:30, 32:60] = [2] * 14 + [255] * 14
    expected[32:60, 2:30] = [255] * 14 + [7] * 14
    np.testing.assert_array_equal(tile(images, columns=2), expected.astype(np.uint8), strict=True)


@pytest.mark.parametrize(
    ("count", "lines", "columns"),
    [(1, 1, 1), (4, 2, 2), (5, 2, 3), (64, 8, 8)],
    ids=["one", "square", "ragged", "many"],
)
def test_tiles_make_about_a_square(count: int, lines: int, columns: int) -> None:
    shape = lines * 32 + 2, columns * 42 + 2
    assert tile(np.zeros((count, 30, 40))).shape == shape


@pytest.mark.parametrize(
    ("size", "scale"), [((8, 8), 6), ((28, 28), 1), ((5, 24), 10), ((24, 24), 2), ((27, 90), 2)]
)
def test_small_images_are_enlarged_by_a_whole_factor(size: tuple[int, int], scale: int) -> None:
    images = np.arange(math.prod(size)).reshape(1, *size) % 256
    shown = tile(images)[2:-2, 2:-2]
    assert shown.shape == tuple(scale * length for length in size)
    for row in range(scale):
        for column in range(scale):
            np.testing.assert_array_equal(shown[row::scale, column::scale], images[0])


def test_a_table_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(
        UsageRefused, match=r"of \(height, width\) or \(height, width, 3\), got \(6,"
    ):
        write_array(tmp_path / "x.png", ROWS.reshape(5, 6))
    assert list(tmp_path.iterdir()) == []


def test_colours_are_tiled_as_each_of_their_channels(tmp_path: Path) -> None:
    write_grid(tmp_path / "x.png", COLOURS, columns=2)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "RGB"
        got = np.asarray(picture)
    for channel in range(3):
        expected = tile(COLOURS[..., channel], columns=2)
        np.testing.assert_array_equal(got[..., channel], expected, strict=True)


@pytest.mark.parametrize(
    ("count", "order"),
    [(2, [0, 1]), (3, [0, 1, 2]), (5, [0, 1, 2])],
    ids=["fewer than a line", "a line", "the rest of a line is left out"],
)
@pytest.mark.parametrize("rows", [ROWS, COLOURS], ids=["gray", "colour"])
def test_pairs_stand_above_each_other(
    tmp_path: Path, rows: Array, count: int, order: list[int]
) -> None:
    upper, lower = rows[:count], 255 - rows[:count]
    write_pairs(tmp_path / "x.png", upper, lower, columns=3)
    with Image.open(tmp_path / "x.png") as picture:
        got = np.asarray(picture)
    expected = tile(np.concatenate([upper[order], lower[order]]), columns=len(order))
    np.testing.assert_array_equal(got, expected, strict=True)
