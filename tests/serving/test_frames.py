"""Data frames are read by their columns, whatever their types; the rest is refused by name."""

import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving.frames import SOURCES, FrameRefused, encode_frame, is_frame, read_frame
from serving.schema import Column, Schema
from serving.table_cells import TableEncoder

SCHEMA = Schema(
    columns=(
        Column(name="size", kind="real"),
        Column(name="colour", kind="category", type="text", words=("blue", "red")),
        Column(name="visits", kind="count", type="int"),
        Column(name="opened", kind="real", type="date", part="day", origin=19000.0),
        Column(name="member", kind="binary", type="bool", words=("false", "true")),
    ),
    ignored={"key": "an id"},
)
ENCODER = TableEncoder(SCHEMA)
DAY = (date(2024, 5, 6) - date(1970, 1, 1)).days - 19000
X = np.array([[1.5, 1, 3, DAY, 1], [np.nan] * 5], np.float32)
ROWS: dict[str, list[Any]] = {
    "size": [1.5, None],
    "colour": ["red", None],
    "visits": [3, None],
    "opened": [date(2024, 5, 6), None],
    "member": [True, None],
}
WHEN = datetime(2024, 5, 6, tzinfo=UTC)
TABLE = pa.table(ROWS)
FRAMES: dict[str, Any] = {
    "lists": ROWS,
    "a Table": TABLE,
    "a RecordBatch": TABLE.to_batches()[0],
    "other types of Arrow": pa.table(
        {
            "size": pa.array([Decimal("1.50"), None]),
            "colour": TABLE.column("colour").cast(pa.large_string()).dictionary_encode(),
            "visits": TABLE.column("visits").cast(pa.uint8()),
            "opened": pa.array([WHEN, None], pa.timestamp("ns", "UTC")),
            "member": pa.array(["true", ""]),
            "key": ["a", "b"],
        }
    ),
    "arrays": {
        "size": np.array([1.5, np.nan], np.float32),
        "colour": np.array(["red", ""]),
        "visits": np.array([3.0, np.nan]),
        "opened": np.array(["2024-05-06T23:00", "NaT"], "M8[m]"),
        "member": np.array([1.0, np.nan]),
    },
    "text": {name: [str(values[0]), ""] for name, values in ROWS.items()},
}


@pytest.mark.parametrize("rows", FRAMES.values(), ids=FRAMES.keys())
def test_the_same_rows_of_all_types(rows: Any) -> None:
    assert is_frame(rows)
    table = encode_frame(ENCODER, read_frame(rows))
    assert table.x.tobytes() == X.tobytes()
    assert table.new_gaps == dict.fromkeys(ROWS, 1)


@pytest.mark.full_environment
def test_frames_of_pandas() -> None:
    import pandas as pd

    frame = pd.DataFrame(ROWS)
    types = {"size": "Float32", "colour": "category", "visits": "Int64", "member": "boolean"}
    zoned = frame.astype(types).assign(opened=pd.to_datetime(frame["opened"]).dt.tz_localize("UTC"))
    for rows in (frame, zoned, frame.astype(object), frame.convert_dtypes(dtype_backend="pyarrow")):
        assert encode_frame(ENCODER, read_frame(rows)).x.tobytes() == X.tobytes()
    assert read_frame(zoned)["size"].dtype == np.float32
    twice = pd.concat([frame, frame[["size"]]], axis=1)
    with pytest.raises(FrameRefused, match="column 'size' is given twice"):
        read_frame(twice)


def test_arrays_are_no_frames() -> None:
    assert not is_frame(X)
    assert not is_frame(X.tolist())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a missing column": ({"colour": ...}, "a column 'colour': there is none among size, visits"),
    "another length": ({"visits": [3]}, "'size' has 2, 'visits' has 1"),
    "lists": ({"size": [[1.0], [2.0]]}, "column 'size' must be numbers, booleans, text or dates"),
    "a matrix": ({"size": X}, r"'size' must be numbers, .* got float32 \(2, 5\)"),
    "durations": ({"size": np.array([1, 2], "m8[s]")}, "'size' must be numbers, .* timedelta64"),
    "text in numbers": (
        {"visits": [3, "many"]},
        "column 'visits' is not of the column's type in row 1: it takes numbers from 0, got 'many'",
    ),
    "two bad rows": ({"visits": [-1, -0.5]}, "'visits' is negative in row 0.*; 2 of 2 rows"),
    "numbers as dates": ({"opened": [19850, 19851]}, "in row 0: it takes dates, or text such as"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], reason: str) -> None:
    rows = {name: values for name, values in {**ROWS, **change}.items() if values is not ...}
    with pytest.raises(FrameRefused, match=reason):
        encode_frame(ENCODER, read_frame(rows))


@pytest.mark.slow
def test_the_modules_need_no_more_of_the_package(tmp_path: Path) -> None:
    """Versions of MLflow have a copy of them, in a package of another name."""
    import serving

    (tmp_path / "copied").mkdir()
    for name in SOURCES:
        content = (Path(serving.__file__).parent / f"{name}.py").read_bytes()
        (tmp_path / "copied" / f"{name}.py").write_bytes(content)
    code = "import sys, copied.frames; print(sorted(n for n in sys.modules if 'serving' in n))"
    command = [sys.executable, "-P", "-c", f"import sys; sys.path[:0] = ['.']; {code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
