import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.errors import DataRefused
from serving.io.column_choice import RowLayout
from serving.io.columns import REASONS, read_x

Array = NDArray[Any]

BYTES = RowLayout((2, 3), np.dtype("u1"), unit_range=False)
FLOATS = RowLayout((2, 3), np.dtype("f4"), unit_range=False)
UNIT = RowLayout((2, 3), np.dtype("f4"), unit_range=True)
X = np.random.default_rng(0).integers(0, 256, (9, 2, 3), dtype=np.uint8)
FLAT = X.reshape(9, 6)


def picture(image: Array, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def raw() -> list[bytes]:
    return [row.tobytes() for row in X]


def fixed_lists(x: Array) -> pa.Array:
    array = pa.array(x.reshape(-1))
    for size in reversed(x.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


COLUMNS: dict[str, Callable[[], pa.Array]] = {
    "fixed bytes": lambda: pa.array(raw(), pa.binary(6)),
    "bytes": lambda: pa.array(raw()),
    "large bytes": lambda: pa.array(raw(), pa.large_binary()),
    "view of bytes": lambda: pa.array(raw(), pa.binary_view()),
    "dictionary of bytes": lambda: pa.array(raw()).dictionary_encode(),
    "list of bytes": lambda: pa.array(FLAT.tolist(), pa.list_(pa.uint8())),
    "large list of int64": lambda: pa.array(FLAT.tolist(), pa.large_list(pa.int64())),
    "list of float64": lambda: pa.array(FLAT.tolist(), pa.list_(pa.float64())),
    "fixed list": lambda: fixed_lists(FLAT),
    "nested lists": lambda: pa.array(X.tolist(), pa.list_(pa.list_(pa.int16()))),
    "nested fixed lists": lambda: fixed_lists(X),
    "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(X),
    "pictures": lambda: pa.array([picture(image) for image in X]),
    "pictures and bytes": lambda: pa.array([picture(X[0]), *raw()[1:]]),
    "pictures of a data set": lambda: pa.array(
        [{"bytes": picture(image), "path": None} for image in X]
    ),
}


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS.keys())
def test_every_kind_of_column_gives_the_same_x(make: Callable[[], pa.Array]) -> None:
    whole = pa.record_batch({"x": make()})
    for start, stop in ((0, 9), (2, 7), (9, 9)):
        x, codes = read_x(whole.slice(start, stop - start), ["x"], BYTES)
        np.testing.assert_array_equal(x, X[start:stop], strict=True)
        assert codes.tolist() == [0] * (stop - start)
        assert x.flags.c_contiguous


def test_numbers_of_many_columns_are_taken_in_their_order() -> None:
    columns = {f"c{index}": pa.array(FLAT[:, index].astype(float)) for index in range(6)}
    batch = pa.record_batch(columns)
    x, codes = read_x(batch, ["c5", "c4", "c3", "c2", "c1", "c0"], BYTES)
    np.testing.assert_array_equal(x.reshape(9, 6), FLAT[:, ::-1])
    assert not codes.any()


def test_floats_keep_their_bits() -> None:
    x = np.random.default_rng(1).standard_normal((5, 2, 3), np.float32)
    for column in (
        fixed_lists(x),
        pa.array([row.tobytes() for row in x], pa.binary(24)),
        pa.array([row.tobytes() for row in x]),
        pa.array(x.tolist(), pa.list_(pa.list_(pa.float64()))),
    ):
        read, codes = read_x(pa.record_batch({"x": column}), ["x"], FLOATS)
        np.testing.assert_array_equal(read, x, strict=True)
        assert not codes.any()


def test_bytes_are_not_copied() -> None:
    for column in (pa.array(raw(), pa.binary(6)), fixed_lists(FLAT)):
        x, _ = read_x(pa.record_batch({"x": column}), ["x"], BYTES)
        buffers = (
            [buffer for buffer in column.flatten().buffers()]
            if column.type.num_fields
            else (column.buffers())
        )
        assert x.ctypes.data == buffers[1].address


GOOD = [0.0, 0.25, 0.5, 0.75, 1.0, 0.0]
WHOLE = [0, 1, 2, 3, 4, 255]
BAD: dict[str, tuple[RowLayout, pa.DataType, Any, Any, str]] = {
    "null": (BYTES, pa.list_(pa.uint8()), WHOLE, None, "x is null, or holds a null"),
    "null inside": (
        BYTES,
        pa.list_(pa.uint8()),
        WHOLE,
        [0, 1, None, 3, 4, 5],
        "x is null, or holds a null",
    ),
    "null of fixed bytes": (BYTES, pa.binary(6), b"abcdef", None, "x is null, or holds a null"),
    "null bytes": (BYTES, pa.binary(), b"abcdef", None, "x is null, or holds a null"),
    "null row of a fixed list": (
        BYTES,
        pa.list_(pa.int64(), 6),
        WHOLE,
        None,
        "x is null, or holds a null",
    ),
    "null line": (
        BYTES,
        pa.list_(pa.list_(pa.uint8())),
        [[0, 1, 2], [3, 4, 5]],
        [[0, 1, 2], None],
        "x is null, or holds a null",
    ),
    "short": (BYTES, pa.list_(pa.uint8()), WHOLE, [1, 2], "x has the wrong size"),
    "long": (BYTES, pa.list_(pa.uint8()), WHOLE, [*WHOLE, 7], "x has the wrong size"),
    "empty": (BYTES, pa.list_(pa.uint8()), WHOLE, [], "x has the wrong size"),
    "ragged": (
        BYTES,
        pa.list_(pa.list_(pa.uint8())),
        [[0, 1, 2], [3, 4, 5]],
        [[0, 1], [2, 3, 4, 5]],
        "x has the wrong size",
    ),
    "nan": (
        FLOATS,
        pa.list_(pa.float32()),
        GOOD,
        [*GOOD[:5], float("nan")],
        "x is NaN, or holds a NaN",
    ),
    "infinite": (
        FLOATS,
        pa.list_(pa.float32()),
        GOOD,
        [float("inf"), *GOOD[1:]],
        "x is not finite",
    ),
    "too large for float32": (
        FLOATS,
        pa.list_(pa.float64()),
        GOOD,
        [1e39, *GOOD[1:]],
        "x is not finite",
    ),
    "above one": (
        UNIT,
        pa.list_(pa.float32()),
        GOOD,
        [1.001, *GOOD[1:]],
        "x is not from 0 to 1",
    ),
    "below zero": (
        UNIT,
        pa.list_(pa.float32()),
        GOOD,
        [-0.001, *GOOD[1:]],
        "x is not from 0 to 1",
    ),
    "a half": (
        BYTES,
        pa.list_(pa.float32()),
        WHOLE,
        [0.5, *WHOLE[1:]],
        "x is not a whole number from 0 to 255",
    ),
    "256": (
        BYTES,
        pa.list_(pa.int16()),
        WHOLE,
        [256, *WHOLE[1:]],
        "x is not a whole number from 0 to 255",
    ),
    "-1": (
        BYTES,
        pa.list_(pa.int64()),
        WHOLE,
        [-1, *WHOLE[1:]],
        "x is not a whole number from 0 to 255",
    ),
    "nan for a byte": (
        BYTES,
        pa.list_(pa.float64()),
        WHOLE,
        [float("nan"), *WHOLE[1:]],
        "x is not a whole number from 0 to 255",
    ),
    "no picture": (
        BYTES,
        pa.binary(),
        b"abcdef",
        b"abcdefg",
        "x is not an opaque 8-bit image of the model's size and colours",
    ),
    "half a picture": (
        BYTES,
        pa.binary(),
        b"abcdef",
        picture(X[0])[:-30],
        "x is not an opaque 8-bit image of the model's size and colours",
    ),
    "picture of another size": (
        BYTES,
        pa.binary(),
        b"abcdef",
        picture(X[0].T.copy()),
        "x is not an opaque 8-bit image of the model's size and colours",
    ),
}


@pytest.mark.parametrize(("layout", "kind", "good", "bad", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_is_named_and_its_neighbours_are_kept(
    layout: RowLayout, kind: pa.DataType, good: Any, bad: Any, reason: str
) -> None:
    batch = pa.record_batch({"x": pa.array([good, bad, bad, good, good], kind)})
    alone, _ = read_x(pa.record_batch({"x": pa.array([good], kind)}), ["x"], layout)
    for start, marks in ((0, [0, 1, 1, 0, 0]), (2, [1, 0, 0])):
        x, codes = read_x(batch.slice(start), ["x"], layout)
        assert [REASONS[code] if code else "" for code in codes] == [reason * m for m in marks]
        np.testing.assert_array_equal(x, np.repeat(alone, marks.count(0), 0), strict=True)


def test_a_null_in_one_of_many_columns_is_a_bad_row() -> None:
    columns = {f"c{index}": pa.array([1, 2, 3]) for index in range(5)}
    batch = pa.record_batch({**columns, "c5": pa.array([7, None, 9])})
    x, codes = read_x(batch, list(batch.schema.names), BYTES)
    assert [REASONS.get(code) for code in codes] == [None, "x is null, or holds a null", None]
    np.testing.assert_array_equal(x.reshape(2, 6), [[1, 1, 1, 1, 1, 7], [3, 3, 3, 3, 3, 9]])


@pytest.mark.parametrize("size", ["picture", "raw"])
def test_a_picture_as_large_as_a_row_is_taken_for_what_it_is(size: str) -> None:
    """A PNG of 1 x N pixels in as many bytes as a row of N would be."""
    image = np.arange(80, dtype=np.uint8).reshape(1, 80)
    for width in range(60, 81):
        content = picture(image[:, :width])
        if len(content) >= width:
            break
    layout = RowLayout((1, len(content)), np.dtype("u1"), unit_range=False)
    row = content if size == "picture" else bytes(len(content))
    x, codes = read_x(pa.record_batch({"x": pa.array([row])}), ["x"], layout)
    assert (len(x), codes[0] != 0) == ((0, True) if size == "picture" else (1, False))


def test_colours_are_decoded_to_three_values_a_pixel() -> None:
    image = np.random.default_rng(2).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    layout = RowLayout((4, 5, 3), np.dtype("u1"), unit_range=False)
    x, codes = read_x(pa.record_batch({"x": pa.array([picture(image)])}), ["x"], layout)
    np.testing.assert_array_equal(x[0], image, strict=True)
    assert not codes.any()


def test_a_jpeg_is_decoded_as_pillow_does() -> None:
    content = picture(np.full((8, 8), 77, np.uint8), "JPEG")
    layout = RowLayout((8, 8), np.dtype("u1"), unit_range=False)
    x, codes = read_x(pa.record_batch({"x": pa.array([content, content[:20]])}), ["x"], layout)
    np.testing.assert_array_equal(x[0], np.full((8, 8), 77), strict=False)
    assert codes.tolist()[0] == 0
    assert REASONS[codes[1]] == "x is not an opaque 8-bit image of the model's size and colours"


def test_a_file_whose_column_changed_its_kind_is_refused() -> None:
    with pytest.raises(DataRefused, match="column 'x' is string"):
        read_x(pa.record_batch({"x": pa.array(["a"])}), ["x"], BYTES)


LARGE = pa.array([2**24 + 1, 5])
DECIMALS = pa.array([5, 2**24 + 1]).cast(pa.decimal128(20, 0))


@pytest.mark.parametrize(
    ("arrays", "good"),
    [
        ([pa.array([True, False]), LARGE], [[0, 5]]),
        ([LARGE, pa.array([True, False])], [[5, 0]]),
        ([LARGE, pa.array([1.5, 2.5])], [[5, 2.5]]),
        ([LARGE, DECIMALS], []),
    ],
    ids=["after booleans", "before booleans", "beside floats", "beside decimals"],
)
def test_a_whole_number_that_float32_rounds_is_a_bad_row(
    arrays: list[pa.Array], good: list[list[float]]
) -> None:
    batch = pa.record_batch(arrays, ["a", "b"])
    x, codes = read_x(batch, ["a", "b"], RowLayout((2,), np.dtype(np.float32), False))
    assert x.tolist() == good
    assert {REASONS[code] for code in codes[codes > 0].tolist()} == {
        "x is a whole number that float32 would round"
    }
