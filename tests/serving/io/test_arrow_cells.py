"""Tables give the same bytes whichever way they come, and come back in their own types."""

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import csv, feather, parquet

from serving.cells import CellEncoder
from serving.errors import DataRefused, UsageRefused
from serving.io.arrow_cells import csv_types, decode_batch, encode_array, encode_batch
from serving.io.column_choice import RowLayout, choose_columns
from serving.io.columns import CELL, explain_code, read_x
from serving.io.rows import Rows
from serving.schema import Column, Schema
from serving.table_cells import TableEncoder, UnknownCells

Array = NDArray[Any]

WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SCHEMA = Schema(
    columns=(
        Column(name="size", kind="real", origin=1000, missing=0.2),
        Column(name="visits", kind="count", type="int", missing=0.2),
        Column(name="city", kind="category", type="text", words=("Köln", "Bonn"), missing=0.2),
        Column(name="code", kind="category", type="int", words=("1", "2"), missing=0.2),
        Column(name="paid", kind="binary", type="bool", words=("false", "true"), missing=0.2),
        Column(name="at", kind="real", type="time", part="day", origin=18_000, missing=0.2),
        Column(
            name="at.weekday", kind="category", type="time", source="at", part="weekday", words=WEEK
        ),
    )
)
ENCODER = TableEncoder(SCHEMA)
LAYOUT = RowLayout((7,), np.dtype(np.float32), unit_range=False, encoder=ENCODER)
AT = [dt.datetime(2020, 5, 6, 12), dt.datetime(1969, 12, 31, 18)]
TABLE = pa.table(
    {
        "more": ["a", "b", "c", "d"],
        "at": pa.array([AT[0], None, AT[1], AT[0]], pa.timestamp("us")),
        "size": [1000.5, 1002.25, None, 0.1],
        "visits": pa.array([0, 3, None, 7], pa.int32()),
        "city": ["Köln", None, "Bonn", "NA"],
        "code": pa.array([2, None, 1, 3], pa.int8()),
        "paid": [True, None, False, True],
    }
)
EXPECTED = np.array(
    [
        [0.5, 0, 0, 1, 1, 388.5, 2],
        [2.25, 3, np.nan, np.nan, np.nan, np.nan, np.nan],
        [np.nan, np.nan, 1, 0, 0, -18000.25, 2],
        [-999.9, 7, 2, 2, 1, 388.5, 2],
    ],
    np.float32,
)


def save_csv(path: Path) -> None:
    csv.write_csv(TABLE, path, csv.WriteOptions(quoting_style="none"))


FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "Parquet": ("x.parquet", lambda path: parquet.write_table(TABLE, path)),
    "Arrow": ("x.arrow", lambda path: feather.write_feather(TABLE, path)),
    "CSV": ("x.csv", save_csv),
}


def read_file(path: Path) -> Array:
    rows = Rows(str(path), types=csv_types(SCHEMA))
    columns = choose_columns(rows.schema, (), rows.ids, LAYOUT)
    batches = [read_x(batch, columns, LAYOUT) for batch in rows.read(0, rows.total, columns, 3)]
    assert not any(codes.any() for _, codes in batches)
    return np.concatenate([x for x, _ in batches])


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_format_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    file, save = FILES[name]
    save(tmp_path / file)
    assert read_file(tmp_path / file).tobytes() == EXPECTED.tobytes()


@pytest.mark.full_environment
@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_file_of_pandas_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    frame = TABLE.to_pandas()
    if name.endswith("csv"):
        frame.to_csv(tmp_path / name, index=False)  # whole numbers with gaps become floats
    else:
        frame.convert_dtypes().to_parquet(tmp_path / name)
    assert read_file(tmp_path / name).tobytes() == EXPECTED.tobytes()


def test_numpy_objects_give_the_same_bytes() -> None:
    arrays = {name: np.array(TABLE[name].to_pylist(), object) for name in TABLE.column_names}
    assert ENCODER.encode_arrays(arrays).x.tobytes() == EXPECTED.tobytes()


def test_batches_and_slices_change_nothing() -> None:
    (batch,) = TABLE.to_batches()
    for start, stop in [(0, 1), (1, 3), (2, 4), (4, 4)]:
        x = encode_batch(batch.slice(start, stop - start), ENCODER).x
        assert x.tobytes() == EXPECTED[start:stop].tobytes()


NUMBERS = [3, None, 1]
TYPES = [
    *(pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.int64(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
    *(pa.decimal128(5, 0), pa.decimal128(9, 4), pa.decimal256(40, 2), pa.decimal32(5, 1)),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()),
]


def cast(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_decimal(kind):
        return pa.array([None if v is None else Decimal(v) for v in values], kind)
    if pa.types.is_float16(kind):
        return pa.array([None if v is None else np.float16(v) for v in values], kind)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return pa.array(values, kind)
    return pa.array([None if v is None else str(v) for v in values]).cast(kind)


@pytest.mark.parametrize("column", ["count", "code", "text"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_whole_number_is_the_same_in_every_type(kind: pa.DataType, column: str) -> None:
    words = {"count": (), "code": ("1", "3"), "text": ("1", "3")}[column]
    chosen = Column(
        name="a",
        kind="category" if words else "count",
        type="text" if column == "text" else "int",
        words=words,
    )
    array = cast(NUMBERS, kind)
    expected = np.array([1, np.nan, 0] if words else NUMBERS, np.float32)
    for same in (array, cast([9, *NUMBERS], kind).slice(1)):
        cells = encode_array(same, CellEncoder([chosen]))
        assert cells.x[:, 0].tobytes() == expected.tobytes()
        assert not cells.unseen.any()


@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.float64()], ids=str)
def test_a_dictionary_is_read_for_its_values(kind: pa.DataType) -> None:
    column = Column(name="a", kind="category", type="text", words=("1", "3"))
    values = cast([3, None, 1, 8], kind)
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2, 3, 0], pa.int8()), values)
    cells = encode_array(array, CellEncoder([column]))
    np.testing.assert_array_equal(cells.x[:, 0], [1, np.nan, np.nan, 0, 2, 1])
    assert cells.unseen.tolist() == [False, False, False, False, True, False]


def test_an_extension_is_read_for_its_storage() -> None:
    array = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", None]))
    cells = encode_array(array, CellEncoder([Column(name="a", kind="real")]))
    np.testing.assert_array_equal(cells.x[:, 0], [1, np.nan])


@pytest.mark.parametrize("text", ["0.7", "0.3", "1234567.89", "-0.00012"])
def test_decimals_are_the_nearest_doubles(text: str) -> None:
    column = Column(name="a", kind="category", words=(text,))
    array = pa.array([Decimal(text)], pa.decimal128(30, 5))  # pyarrow's own cast gives others
    assert encode_array(array, CellEncoder([column])).x.tolist() == [[0.0]]


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
        *(pa.timestamp(unit, zone) for unit in ("s", "ns") for zone in ("UTC", "Asia/Tokyo")),
        pa.date32(),
        pa.date64(),
    ],
    ids=str,
)
def test_dates_are_the_same_in_every_unit_and_zone(kind: pa.DataType) -> None:
    moments = [dt.datetime(2026, 11, 27), None, dt.datetime(1969, 12, 31)]
    array = pa.array(moments, pa.timestamp("s", "UTC" if getattr(kind, "tz", None) else None))
    encoder = CellEncoder([SCHEMA.columns[5], SCHEMA.columns[6]])
    expected = [[2784.0, 4.0], [np.nan, np.nan], [-18001.0, 2.0]]
    np.testing.assert_array_equal(encode_array(array.cast(kind), encoder).x, expected)


def test_a_column_of_nulls_is_all_gaps() -> None:
    for column in SCHEMA.columns:
        assert np.isnan(encode_array(pa.nulls(2), CellEncoder([column])).x).all()


@pytest.mark.parametrize("words", ["NA", "null", "?", "NaN", "-", ""])
def test_words_of_csv_that_mean_a_gap_are_gaps_except_in_text(tmp_path: Path, words: str) -> None:
    line = ",".join([words] * 6)
    (tmp_path / "x.csv").write_text(f"size,visits,city,code,paid,at\n{line}\n")
    x = read_file(tmp_path / "x.csv")
    assert np.isnan(x).tolist() == [[True, True, not words, True, True, True, True]]


@pytest.mark.parametrize(
    ("decimal", "delimiter"), [(".", ","), (",", ";")], ids=["points", "commas"]
)
def test_words_of_csv_that_are_numbers_match_and_others_are_unseen(
    tmp_path: Path, decimal: str, delimiter: str
) -> None:
    schema = Schema(
        columns=(
            Column(name="size", kind="real"),
            Column(name="code", kind="category", type="int", words=("3", "4")),
            Column(name="rate", kind="binary", words=("0.5", "1")),
        )
    )
    rows = [("1.5", code, rate) for code, rate in (("3", "0.5"), ("3.0", "1.0"), ("x", "n"))]
    lines = [delimiter.join(row).replace(".", decimal) for row in [("size", "code", "rate"), *rows]]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    layout = RowLayout((3,), np.dtype(np.float32), unit_range=False, encoder=TableEncoder(schema))
    table, unknown = Rows(str(tmp_path / "x.csv"), types=csv_types(schema)), UnknownCells()
    (batch,) = table.read(0, 3, schema.sources, 3)
    x, codes = read_x(batch, schema.sources, layout, unknown=unknown)
    assert not codes.any()
    np.testing.assert_array_equal(x, np.array([[1.5, 0, 0], [1.5, 0, 1], [1.5, 2, 2]], np.float32))
    assert unknown.take()["unseen"] == {"code": 1, "rate": 1}


def test_a_table_comes_back_in_its_types() -> None:
    back = decode_batch(SCHEMA, EXPECTED)
    assert back.schema.types == [
        *(pa.float64(), pa.int64(), pa.string(), pa.int64(), pa.bool_(), pa.timestamp("s")),
    ]
    assert back.column("city").to_pylist() == ["Köln", None, "Bonn", "other"]
    for name in ("visits", "paid", "at"):
        assert back.column(name).to_pylist() == TABLE[name].to_pylist()
    assert back.column("code").to_pylist() == [2, None, 1, None]
    x = encode_batch(back, ENCODER).x
    np.testing.assert_array_equal(x[:3], EXPECTED[:3])


def test_a_bad_row_is_explained_by_its_column() -> None:
    table = TABLE.set_column(3, "visits", pa.array(["many", "1", "2", "-3"]))
    table = table.set_column(2, "size", pa.array([1, np.inf, 2, 3]))
    x, codes = read_x(table.to_batches()[0], SCHEMA.sources, LAYOUT)
    assert (codes >= CELL).tolist() == [True, True, False, True]
    assert [explain_code(code, LAYOUT) for code in codes[codes > 0]] == [
        "column 'visits' is not of the column's type",
        "column 'size' is not finite in float32",
        "column 'visits' is negative",
    ]
    assert len(x) == 1


def test_what_the_schema_does_not_know_is_counted_over_batches() -> None:
    unknown = UnknownCells()
    (batch,) = TABLE.to_batches()
    known = Schema(
        columns=tuple(Column(name=c.name, kind=c.kind, words=c.words) for c in SCHEMA.columns[:2])
    )
    layout = RowLayout((2,), np.dtype(np.float32), False, encoder=TableEncoder(known))
    for start in range(4):
        read_x(batch.slice(start, 1), known.sources, layout, unknown=unknown)
        read_x(batch.slice(start, 1), SCHEMA.sources, LAYOUT, unknown=unknown)
    assert unknown.describe() == [
        "words not seen in training count as other: city in 1 rows, code in 1 rows",
        "gaps in columns that had none in training: size in 1 rows, visits in 1 rows",
    ]


def test_columns_are_found_by_their_names() -> None:
    assert choose_columns(TABLE.schema, (), (), LAYOUT) == SCHEMA.sources
    assert choose_columns(TABLE.schema, SCHEMA.sources[::-1], (), LAYOUT) == SCHEMA.sources


@pytest.mark.parametrize(
    ("schema", "asked", "error", "message"),
    [
        (TABLE.drop_columns(["city"]).schema, (), UsageRefused, "no column 'city', which"),
        (TABLE.select(["at"]).schema, (), UsageRefused, "no column 'size', nor 4 others"),
        (TABLE.schema, ("more",), UsageRefused, "leave out --x"),
        (
            TABLE.set_column(1, "at", pa.array([[1.0]] * 4)).schema,
            (),
            DataRefused,
            r"numbers, text or dates, got at \(list",
        ),
    ],
    ids=["missing", "several missing", "asked", "a list"],
)
def test_other_columns_are_refused(
    schema: pa.Schema, asked: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose_columns(schema, asked, (), LAYOUT)


def test_gap_words_are_those_of_pyarrow_and_more() -> None:
    from serving.cell_values import GAP_WORDS

    assert {*csv.ConvertOptions().null_values} < GAP_WORDS


def test_counts_of_another_process_are_added() -> None:
    worker, driver = UnknownCells(), UnknownCells()
    cells = ENCODER.encode_arrays(
        {name: np.array(["new" if name == "city" else None]) for name in SCHEMA.sources}
    )
    for _ in range(2):
        worker.add(cells)
        driver.merge(json.loads(json.dumps(worker.take())))
    assert worker.describe() == []
    assert driver.describe() == ["words not seen in training count as other: city in 2 rows"]


WORDS = ("-1", "0", "3", "0.5", "true", "x", "9007199254740993")
COLUMNS = [
    Column(name="a", kind="real"),
    Column(name="a", kind="real", origin=0.25),
    Column(name="a", kind="count", type="int"),
    Column(name="a", kind="positive"),
    Column(name="a", kind="category", type="int", words=WORDS[:3]),
    Column(name="a", kind="category", words=WORDS[:4]),
    Column(name="a", kind="binary", type="bool", words=("false", "true")),
    Column(name="a", kind="category", type="text", words=WORDS),
    Column(name="a", kind="real", type="time", part="day"),
    Column(name="a", kind="category", type="time", part="weekday", words=WEEK),
]
VALUES = st.one_of(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 4)),
    st.lists(st.none() | st.floats(width=64) | st.sampled_from([-0.0, 0.5, 3.0])),
    st.lists(st.none() | st.booleans()),
    st.lists(st.none() | st.text() | st.sampled_from([*WORDS, "NA", "", " 3 ", "1e400"])),
    st.lists(st.none() | st.binary(max_size=3)),
    st.lists(st.none() | st.dates()),
    st.lists(st.none() | st.datetimes()),
    st.lists(st.none() | st.decimals(-(10**6), 10**6, places=2)),
)


@given(VALUES, st.sampled_from(COLUMNS))
@settings(max_examples=500, deadline=None)
def test_any_values_give_the_same_cells_in_arrow_and_in_numpy(
    values: list[Any], column: Column
) -> None:
    encoder = CellEncoder([column])
    objects = np.empty(len(values), object)
    objects[:] = values
    expected = encoder.encode(objects)
    array = pa.array(values)
    encoded = [array, array.dictionary_encode()] if not pa.types.is_null(array.type) else [array]
    for same in encoded:
        cells = encode_array(same, encoder)
        assert cells.x.tobytes() == expected.x.tobytes()
        assert cells.faults.tolist() == expected.faults.tolist()
        assert cells.unseen.tolist() == expected.unseen.tolist()
    assert not np.isinf(expected.x).any()
