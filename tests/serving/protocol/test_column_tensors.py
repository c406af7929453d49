"""A table's columns are read from the tensors of the protocol as they were written, or refused."""

import struct
from typing import Any

import numpy as np
import pytest

from serving.errors import DataRefused, UsageRefused
from serving.operations import operation_table
from serving.protocol.column_tensors import (
    columns_sent,
    datatype_of_column,
    read_bytes,
    read_values,
    wire_column,
    write_bytes,
)

TABLE = operation_table((3,), "float32", 2, mixed=True)
NAMES = frozenset(("size", "colour", "x"))


def objects(*values: Any) -> np.ndarray:
    return np.fromiter(values, object, len(values))


VALUES: dict[str, tuple[str, list[Any], np.ndarray]] = {
    "floats": ("FP64", [1.5, 2, None], np.array([1.5, 2.0, np.nan])),
    "narrow floats": ("FP32", [0.1, None], np.array([0.1, np.nan], np.float32)),
    "whole numbers": ("INT64", [-(2**53) - 1, 3.0], np.array([-(2**53) - 1, 3])),
    "unsigned": ("UINT64", [2**64 - 1], np.array([2**64 - 1], np.uint64)),
    "small ones": ("INT8", [-128, 127], np.array([-128, 127], np.int8)),
    "whole numbers with a gap": ("INT32", [1, None], objects(1, None)),
    "flags": ("BOOL", [True, False], np.array([True, False])),
    "flags with a gap": ("BOOL", [True, None], objects(True, None)),
    "text": ("BYTES", ["Köln", None, ""], objects("Köln", None, "")),
    "rows of one value": ("INT64", [[1], [2]], np.array([1, 2])),
    "no rows": ("FP64", [], np.array([])),
}


@pytest.mark.parametrize(("datatype", "data", "expected"), VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize("axes", [1, 2])
def test_values(datatype: str, data: list[Any], expected: np.ndarray, axes: int) -> None:
    found = read_values("c", datatype, [len(data), 1][:axes], data)
    assert found.dtype == expected.dtype
    assert found.tolist() == pytest.approx(expected.tolist(), nan_ok=True, abs=0)


def test_values_in_json_of_their_own() -> None:
    """MLServer's `pd_json`: a column of objects of several types."""
    data = ['"3"', "3", "true", "null", "0.5", ""]
    found = read_values("c", "BYTES", [6, 1], data, "pd_json")
    assert found.tolist() == ["3", 3, True, None, 0.5, None]
    assert [*map(type, found.tolist())] == [str, int, bool, type(None), float, type(None)]


WIRES: dict[str, tuple[np.ndarray, str, list[Any]]] = {
    "float64": (np.array([0.1, np.nan]), "FP64", [0.1, np.nan]),
    "float32": (np.array([0.1], np.float32), "FP32", [float(np.float32(0.1))]),
    "halves": (np.array([0.5], np.float16), "FP32", [0.5]),
    "big-endian": (np.array([258], ">i8"), "INT64", [258]),
    "bool": (np.array([True, False]), "BOOL", [True, False]),
    "text": (np.array(["a", "", "Köln"]), "BYTES", ["a", None, "Köln"]),
    "days": (np.array(["2026-12-31", "NaT"], "M8[D]"), "BYTES", ["2026-12-31", None]),
    "times": (
        np.array(["2026-12-31T23:59:01.5"], "M8[ns]"),
        "BYTES",
        ["2026-12-31T23:59:01.500000"],
    ),
    "objects": (
        objects("a", None, 3, 0.5, True, np.nan, np.float32(0.1)),
        "BYTES",
        ["a", None, "3", "0.5", "true", None, "0.10000000149011612"],
    ),
}


@pytest.mark.parametrize(("values", "datatype", "expected"), WIRES.values(), ids=WIRES.keys())
def test_what_is_written_is_read(values: np.ndarray, datatype: str, expected: list[Any]) -> None:
    column = wire_column(values)
    assert datatype_of_column(column) == datatype
    found = read_bytes("c", datatype, [len(values)], memoryview(write_bytes(column)))
    assert found.tolist() == pytest.approx(expected, nan_ok=True, abs=0)


def test_bytes_that_are_no_utf8_are_a_word_of_their_own() -> None:
    content = struct.pack("<I", 2) + b"\xff\xfe"
    assert read_bytes("c", "BYTES", [1], memoryview(content)).tolist() == ["\ufffd\ufffd"]


REFUSED: dict[str, tuple[Any, Any, Any, Any, str]] = {
    "a datatype": ("FP16", [1], [1.0], None, "datatype of c must be one of BOOL, INT8, .*'FP16'"),
    "no datatype": (None, [1], [1.0], None, "datatype of c must be one of"),
    "two columns": ("FP32", [2, 2], [1.0] * 4, None, r"must be \[rows\] or \[rows, 1\]"),
    "a scalar": ("FP32", [], [1.0], None, r"must be \[rows\] or \[rows, 1\]"),
    "too few": ("FP32", [2], [1.0], None, "must be a list of 2 values, got 1"),
    "no list": ("FP32", [1], 1.0, None, "must be a list of 1 values, got float"),
    "text in numbers": ("INT64", [2], [1, "a"], None, "whole numbers or null, got 'a' in row 1"),
    "flags in numbers": ("FP64", [1], [True], None, "numbers or null, got 'True' in row 0"),
    "numbers in text": ("BYTES", [1], [3], None, "text or null, got '3' in row 0"),
    "a fraction": ("INT64", [1], [1.5], None, "whole numbers of INT64, got 1.5 in row 0"),
    "too large": ("UINT8", [2], [255, 256], None, "whole numbers of UINT8, got 256 in row 1"),
    "rows of two": ("INT64", [2], [[1, 2], [3, 4]], None, "flat list, or rows of one value"),
    "a content type": ("BYTES", [1], ["YQ=="], "base64", "content_type of c must be one of str"),
    "no JSON": ("BYTES", [2], ["1", "{"], "pd_json", "c is not JSON in row 1"),
    "an object": ("BYTES", [1], ['{"a": 1}'], "pd_json", 'row 0 is {"a": 1}'),
    "a huge number": ("BYTES", [1], ["1" * 400], "pd_json", "c is not JSON in row 0"),
    "many rows": ("BOOL", [4097], [True] * 4097, None, "may hold 4096 rows, got 4097"),
}


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "kind", "reason"), REFUSED.values(), ids=REFUSED.keys()
)
def test_what_does_not_fit_is_refused(
    datatype: Any, shape: Any, data: Any, kind: Any, reason: str
) -> None:
    with pytest.raises((DataRefused, UsageRefused), match=reason):
        read_values("c", datatype, shape, data, kind)


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "too few bytes": ("INT64", b"1234567", "needs 16 bytes, got 7"),
    "no length": ("BYTES", struct.pack("<I", 1) + b"a\0\0", "ends within row 1 of 2"),
    "a length beyond the end": (
        "BYTES",
        struct.pack("<I", 2**32 - 1) + b"abcd",
        "ends within row 0 of 2",
    ),
    "more rows": ("BYTES", struct.pack("<III", 0, 0, 0), "4 bytes after its 2 rows"),
}


@pytest.mark.parametrize(("datatype", "content", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_bytes_are_refused(datatype: str, content: bytes, reason: str) -> None:
    with pytest.raises(DataRefused, match=reason):
        read_bytes("c", datatype, [2], memoryview(content))


PD = {"content_type": "pd"}
SENT: dict[str, tuple[str, list[Any], dict[str, Any], bool]] = {
    "x": ("score", ["x"], {}, False),
    "x and eps": ("score", ["x", "eps"], {}, False),
    "columns": ("score", ["size", "colour"], {}, True),
    "columns and eps": ("score", ["size", "colour", "eps"], {}, True),
    "a column x among others": ("encode", ["size", "x"], {}, True),
    "a column x alone": ("encode", ["x"], PD, True),
    "latents": ("decode", ["z"], PD, False),
    "nothing": ("score", [], PD, False),
}


@pytest.mark.parametrize(
    ("operation", "names", "parameters", "expected"), SENT.values(), ids=SENT.keys()
)
def test_which_requests_are_by_columns(
    operation: Any, names: list[Any], parameters: dict[str, Any], expected: bool
) -> None:
    found = columns_sent(TABLE[operation], NAMES, names, parameters)
    assert found == (NAMES if expected else ())


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(DataRefused, match="the table has no column 'sise'"):
        columns_sent(TABLE["score"], NAMES, ["sise", "colour"], {})
    with pytest.raises(DataRefused, match="no column 'x': send x or columns, not both"):
        columns_sent(TABLE["score"], NAMES - {"x"}, ["x", "colour"], {})
