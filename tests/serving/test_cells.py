"""Cells of every type become the same numbers, and come back as what they were."""

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from serving.cell_values import find_gaps, number_text, parse_instants, parse_numbers
from serving.cells import (
    INFINITE,
    NEGATIVE,
    OTHER,
    TYPE,
    CellEncoder,
    decode_cells,
)
from serving.schema import Column, Part, Schema
from serving.table_cells import TableEncoder, decode_table

Array = NDArray[Any]

LAST_MOMENT = dt.datetime(9999, 12, 31, 23, 59, tzinfo=dt.timezone(dt.timedelta(hours=-5)))
REAL = Column(name="a", kind="real")
COUNT = Column(name="a", kind="count", type="int")
POSITIVE = Column(name="a", kind="positive")
CODES = Column(name="a", kind="category", type="int", words=("3", "-1", "20"))
FRACTIONS = Column(name="a", kind="category", words=("0.1", "0.5", "2"))
BOOL = Column(name="a", kind="binary", type="bool", words=("false", "true"))
TEXT = Column(name="a", kind="category", type="text", words=("red", "3", "Größe"))


def encode(column: Column, values: Any, missing: Any = None) -> list[float]:
    cells = CellEncoder([column]).encode(np.asarray(values), missing)
    assert cells.x.dtype == np.float32
    assert not cells.faults.any()
    result: list[float] = cells.x[:, 0].tolist()
    return result


def objects(*values: Any) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def date_columns(*parts: Part, **settings: Any) -> list[Column]:
    words = {"weekday": 7, "month": 12, "hour": 24}
    return [
        Column(
            name="opened" if part == "day" else f"opened.{part}",
            kind="real" if part == "day" else "category",
            source="opened",
            part=part,
            words=tuple(map(str, range(words.get(part, 0)))),
            **{"type": "time", **settings},
        )
        for part in parts
    ]


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "i8", "u8", "f2", "f4", "f8", "U", "S", "O"])
@pytest.mark.parametrize("column", [REAL, COUNT, CODES, TEXT], ids=["real", "count", "int", "text"])
def test_three_is_three_in_every_type(column: Column, kind: str) -> None:
    expected = 3.0 if not column.words else float(column.words.index("3"))
    assert encode(column, np.array([3, 3]).astype(kind)) == [expected, expected]


def test_three_is_three_as_an_object_of_any_class() -> None:
    values = objects(3, 3.0, Decimal("3.00"), "3", b"3", np.int8(3), np.float32(3), " 3.0 ")
    assert encode(CODES, values) == [0.0] * 8
    assert encode(REAL, values) == [3.0] * 8


@pytest.mark.parametrize(
    "values",
    [
        np.array([0.1, 0.5, 2], np.float32),
        np.array([0.1, 0.5, 2], np.float64),
        np.array(["0.1", ".5", "2.0"]),
        objects(Decimal("0.1"), Decimal("0.50"), 2),
    ],
    ids=["float32", "float64", "text", "decimal"],
)
def test_fractions_are_found_in_every_type(values: Array) -> None:
    assert encode(FRACTIONS, values) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "values",
    [
        np.array([False, True]),
        np.array([0, 1]),
        np.array([0.0, 1.0], np.float32),
        np.array(["false", "TRUE"]),
        objects(False, True),
        objects(b"0", "True"),
    ],
    ids=["bool", "int", "float", "text", "objects", "mixed"],
)
def test_booleans_are_found_in_every_type(values: Array) -> None:
    assert encode(BOOL, values) == [0.0, 1.0]
    assert encode(REAL, values) == [0.0, 1.0]


def test_true_is_a_word_of_text_and_one_is_another() -> None:
    column = Column(name="a", kind="category", type="text", words=("true", "1"))
    assert encode(column, objects(True, 1, 1.0, "true", "True")) == [0, 1, 1, 0, 2]


@pytest.mark.parametrize(
    "values",
    [
        objects(None, float("nan"), "", b"", np.datetime64("NaT"), Decimal("NaN")),
        np.full(6, np.nan),
        -np.full(6, np.nan, np.float32),
        np.full(6, "NaT", "M8[ns]"),
        np.full(6, ""),
        np.full(6, b""),
    ],
    ids=["objects", "float64", "minus NaN", "NaT", "text", "bytes"],
)
@pytest.mark.parametrize(
    "column", [REAL, CODES, BOOL, TEXT, date_columns("day")[0]], ids=lambda column: column.type
)
def test_gaps_have_one_nan(column: Column, values: Array) -> None:
    cells = CellEncoder([column]).encode(values)
    assert cells.x.tobytes() == np.full((6, 1), np.nan, np.float32).tobytes()
    assert not cells.faults.any()
    assert not cells.unseen.any()


@pytest.mark.full_environment
def test_pandas_own_gaps_are_gaps() -> None:
    import pandas as pd

    values = objects(pd.NA, pd.NaT, pd.Timestamp("2020-01-01"))
    assert find_gaps(values).tolist() == [True, True, False]


def test_what_stands_in_a_gap_changes_nothing() -> None:
    missing = np.array([True, False])
    for values in ([np.inf, 2], [1e300, 2], [-5, 2]):
        x = CellEncoder([COUNT]).encode(np.array(values), missing)
        assert x.x.tobytes() == np.array([np.nan, 2], np.float32).tobytes()
        assert not x.faults.any()


def test_words_that_mean_a_gap_are_words_of_text() -> None:
    values = np.array(["NA", "nan", "3", "?"])
    assert np.isnan(encode(REAL, values)).tolist() == [True, True, False, True]
    assert encode(TEXT, values) == [3, 3, 1, 3]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        (REAL, [1, np.inf, -np.inf, 1e39], [0, INFINITE, INFINITE, INFINITE]),
        (COUNT, [0, -1, 0.5, -0.5, np.inf], [0, NEGATIVE, 0, NEGATIVE, INFINITE]),
        (POSITIVE, [0, 0.5, -0.5], [0, 0, 0]),
        (REAL, ["1", "one", "2020-01-01"], [0, TYPE, TYPE]),
        (REAL, np.array(["2020-01-01"], "M8[D]"), [TYPE]),
        (date_columns("day")[0], [1.5], [TYPE]),
        (date_columns("day")[0], ["2020-01-01", "yesterday"], [0, TYPE]),
        (REAL, ["1_0", "10", "१०"], [TYPE, 0, TYPE]),
        (REAL, np.array([10**400, -(10**400), 1], object), [INFINITE, INFINITE, 0]),
        (date_columns("day")[0], ["9999-12-31T23:59:59-05:00", "9999-12-31"], [TYPE, 0]),
        (date_columns("day")[0], np.array([LAST_MOMENT], object), [TYPE]),
    ],
    ids=[
        "real",
        "count",
        "positive",
        "text",
        "date",
        "number",
        "no date",
        "no digits",
        "huge",
        "beyond the calendar",
        "moment beyond the calendar",
    ],
)
def test_faults(column: Column, values: Any, expected: list[int]) -> None:
    assert CellEncoder([column]).encode(np.asarray(values)).faults.tolist() == expected


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (CODES, np.array([4, 2.5, np.inf])),
        (CODES, np.array(["4", "red", "03.5"])),
        (CODES, np.array(["2020-01-01"] * 3, "M8[s]")),
        (TEXT, np.array(["Red", " red", "blue"])),
        (TEXT, np.array([4, 2.5, np.inf])),
        (BOOL, np.array(["yes", "2", "-1"])),
    ],
    ids=["numbers", "text", "dates", "words", "numbers of text", "bool"],
)
def test_words_not_seen_in_training_count_as_other(column: Column, values: Array) -> None:
    cells = CellEncoder([column]).encode(values)
    assert cells.x[:, 0].tolist() == [len(column.words)] * 3
    assert cells.unseen.all()
    assert not cells.faults.any()


def test_the_origin_is_subtracted_before_the_cast() -> None:
    column = Column(name="a", kind="real", origin=1.6e9)
    assert encode(column, [1_600_000_001, 1_600_000_002.25]) == [1.0, 2.25]
    assert decode_cells(column, np.array([1, 2.25], np.float32)).tolist() == [
        1_600_000_001,
        1_600_000_002.25,
    ]


def test_zero_has_no_sign() -> None:
    assert CellEncoder([REAL]).encode(np.array([-0.0])).x.tobytes() == bytes(4)
    assert encode(CODES, [-1.0, 3]) == [1, 0]
    zero = Column(name="a", kind="category", type="int", words=("0",))
    assert encode(zero, [-0.0]) == [0]


DATES = ["1969-12-31", "1970-01-01", "2000-02-29", "2026-11-27"]


def test_dates_have_days_weekdays_and_months() -> None:
    encoder = CellEncoder(date_columns("day", "weekday", "month", type="date"))
    expected = [
        [float((day - dt.date(1970, 1, 1)).days), float(day.weekday()), float(day.month - 1)]
        for day in map(dt.date.fromisoformat, DATES)
    ]
    days = np.array(DATES, "M8[D]")
    doors = [
        np.array(DATES),
        days,
        days.astype("M8[ns]"),
        days.astype(object),
        days.astype("M8[s]"),
    ]
    for values in doors:
        assert encoder.encode(values).x.tolist() == expected


def test_times_have_fractions_hours_and_zones() -> None:
    encoder = CellEncoder(date_columns("day", "hour", origin=18_000))
    at = dt.datetime(2019, 4, 14, 18, tzinfo=dt.timezone(dt.timedelta(hours=-2)))
    values = objects(at, "2019-04-14T20:00Z", "2019-04-14 15:00:00-05:00", "2019-04-14T20:00:00")
    assert encoder.encode(values).x.tolist() == [[0.8333333134651184, 20.0]] * 4
    assert encoder.encode(np.array(["1969-12-31T23:59"], "M8[m]")).x[0, 1] == 23


def test_a_column_of_days_leaves_out_the_time() -> None:
    encoder = CellEncoder(date_columns("day", type="date"))
    assert encoder.encode(np.array(["1970-01-03T23:00"])).x.tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (REAL, np.array([1.5, -2, 0], np.float32)),
        (COUNT, np.array([0, 7, 16_777_216])),
        (CODES, np.array([20, 3, -1])),
        (FRACTIONS, np.array([0.5, 0.1, 2])),
        (BOOL, np.array([True, False, True])),
        (TEXT, objects("Größe", "red", "3")),
        (date_columns("day", type="date")[0], np.array(DATES, "M8[D]")),
        (date_columns("day", origin=18_000)[0], np.array(["2019-04-14T18:30:05"], "M8[s]")),
    ],
    ids=["real", "count", "int", "fraction", "bool", "text", "date", "time"],
)
def test_decode_is_the_inverse(column: Column, values: Array) -> None:
    back = decode_cells(column, CellEncoder([column]).encode(values).x[:, 0])
    assert back.tolist() == values.tolist()
    assert back.dtype.kind == values.dtype.kind


@pytest.mark.parametrize(
    ("column", "x", "expected"),
    [
        (COUNT, [2.6, np.nan], [3.0, None]),
        (CODES, [0, 3, np.nan], [3.0, None, None]),
        (BOOL, [1, 2, np.nan], [True, None, None]),
        (TEXT, [0, 3, np.nan], ["red", OTHER, None]),
    ],
    ids=["count", "int", "bool", "text"],
)
def test_decode_gaps_and_other_words(column: Column, x: list[float], expected: list[Any]) -> None:
    values = decode_cells(column, np.array(x, np.float32))
    assert [None if value != value else value for value in values.tolist()] == expected


def test_decode_a_gap_in_dates() -> None:
    values = decode_cells(date_columns("day")[0], np.array([0, np.nan], np.float32))
    assert np.isnat(values).tolist() == [False, True]


@given(arrays.arrays(np.int64, 5, elements=st.integers(-(2**53), 2**53)))
def test_whole_numbers_are_the_same_words_in_every_type(values: Array) -> None:
    words = tuple(dict.fromkeys(map(number_text, values)))
    column = Column(name="a", kind="category", type="int", words=words)
    expected = [float(words.index(str(value))) for value in values]
    for same in (values, values.astype(float), values.astype(object), values.astype(str)):
        assert encode(column, same) == expected
    codes = np.arange(len(words), dtype=np.float32)
    assert [str(value) for value in decode_cells(column, codes)] == list(words)


@given(st.lists(st.floats(width=64, allow_nan=False, allow_infinity=False), min_size=1))
def test_the_text_of_a_number_is_that_number(values: list[float]) -> None:
    numbers, faults = parse_numbers([number_text(value) for value in values])
    assert numbers.tolist() == values
    assert not faults.any()


@given(st.lists(st.datetimes(), min_size=1))
def test_dates_in_text_are_those_dates(moments: list[dt.datetime]) -> None:
    instants, faults = parse_instants([moment.isoformat() for moment in moments])
    assert instants.astype(object).tolist() == moments
    assert not faults.any()


SCHEMA = Schema(
    columns=(
        REAL,
        Column(name="b", kind="category", type="text", words=("x", "y"), missing=0.5),
        *date_columns("day", "month", type="date"),
    )
)


def table(**changes: list[Any]) -> dict[str, Array]:
    columns: dict[str, list[Any]] = {
        "a": [1.0, 2.0],
        "b": ["x", None],
        "opened": ["2020-01-01", "2020-02-01"],
    }
    return {name: objects(*values) for name, values in (columns | changes).items()}


def test_a_table_is_encoded_by_the_names_of_its_columns() -> None:
    cells = TableEncoder(SCHEMA).encode_arrays(table(more=[1, 2]))
    expected = np.array([[1, 0, 18262, 0], [2, np.nan, 18293, 1]], np.float32)
    np.testing.assert_array_equal(cells.x, expected)
    assert (cells.unseen, cells.new_gaps) == ({}, {})
    back = decode_table(SCHEMA, cells.x)
    assert {name: values.tolist() for name, values in back.items()} == {
        "a": [1.0, 2.0],
        "b": ["x", None],
        "opened": [dt.date(2020, 1, 1), dt.date(2020, 2, 1)],
    }


def test_a_table_counts_what_it_does_not_know_in_good_rows() -> None:
    encoder = TableEncoder(SCHEMA)
    cells = encoder.encode_arrays(table(a=[None, np.inf], b=["new", "new"], opened=[None, "no"]))
    assert cells.unseen == {"b": 1}
    assert cells.new_gaps == {"a": 1, "opened": 1}
    assert cells.faults.tolist() == [0, INFINITE]
    assert encoder.explain(INFINITE, int(cells.faulty[1])) == "column 'a' is not finite in float32"


def test_decode_what_no_column_can_hold_as_its_end() -> None:
    values = decode_cells(COUNT, np.array([1e30, -1e30], np.float32))
    assert values.tolist() == [2**63 - 1024, 1024 - 2**63]
    for day in date_columns("day", type="date") + date_columns("day"):
        years = decode_cells(day, np.array([1e30, -1e30], np.float32)).astype("M8[Y]")
        assert years.astype(str).tolist() == ["9999", "0001"]
