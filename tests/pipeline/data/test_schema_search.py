"""What each column of a table is found to be, and what a person may settle."""

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.data.column_figures import NumberFigures, measure
from pipeline.data.column_kinds import is_id_name, keep_words
from pipeline.data.schema_search import (
    ColumnSettings,
    FoundColumn,
    find_schema,
)
from serving.errors import DataRefused
from serving.io.arrow_cells import decode_batch, encode_batch
from serving.schema import Column, Schema
from serving.table_cells import TableEncoder

Array = NDArray[Any]
RNG = np.random.default_rng(0)
N = 1_000


def find(values: Any, name: str = "a", **settled: Any) -> FoundColumn:
    table = pa.table({name: values})
    chosen = {name: ColumnSettings(**settled)} if settled else None
    (found,) = find_schema(table, chosen).columns
    return found


def column(values: Any, **settled: Any) -> Column:
    found = find(values, **settled)
    assert len(found.columns) == 1, found
    return found.columns[0]


def repeat(*values: Any, rows: int = N) -> list[Any]:
    return [values[index % len(values)] for index in range(rows)]


def tail(values: list[Any], *more: Any) -> list[Any]:
    """Return values whose last ones are others."""
    return values[: len(values) - len(more)] + list(more)


WEEKS = [dt.date(1965, 1, 1) + dt.timedelta(days=9 * index) for index in range(N)]
TIMES = [dt.datetime(2020, 1, 1) + dt.timedelta(hours=7 * index) for index in range(N)]
PEOPLE = np.array([f"person {index}" for index in range(N)])

KINDS: dict[str, tuple[Any, str]] = {
    "booleans": (repeat(True, False), "binary"),
    "two words": (repeat("yes", "no"), "binary"),
    "two numbers": (repeat(1, 2), "binary"),
    "two fractions": (repeat(0.5, 2.25), "binary"),
    "two numbers with gaps": (repeat(0, 1, None), "binary"),
    "a dictionary": (pa.array(repeat("a", "b", "c")).dictionary_encode(), "category"),
    "words": (repeat("red", "green", "blue"), "category"),
    "large strings": (pa.array(repeat("x", "y", "z"), pa.large_string()), "category"),
    "string views": (pa.array(repeat("x", "y", "z"), pa.string_view()), "category"),
    "bytes of text": (pa.array(repeat(b"x", b"y", b"z")), "category"),
    "counts with a long tail": (tail(RNG.poisson(0.5, N).tolist(), 9, 14, 30), "count"),
    "mostly zeros": (tail([0] * N, 5, 40, 900), "count"),
    "codes": (repeat(10, 20, 35), "category"),
    "weekdays": (repeat(*range(7)), "category"),
    "marks": (RNG.integers(1, 6, N), "category"),
    "negative codes": (repeat(-1, 0, 1), "category"),
    "counts": (RNG.poisson(2, N), "count"),
    "large counts": (RNG.poisson(100, N), "count"),
    "overdispersed counts": (RNG.negative_binomial(1, 0.05, N), "count"),
    "counts with gaps": (pa.array(tail(RNG.poisson(2, N).tolist(), None)), "count"),
    "floats of counts with gaps": (np.append(RNG.poisson(2, N).astype(float), np.nan), "count"),
    "decimals of counts": ([Decimal(int(v)) for v in RNG.poisson(30, N)], "count"),
    "unsigned counts": (RNG.poisson(30, N).astype(np.uint64), "count"),
    "years": (RNG.integers(1950, 2020, N), "real"),
    "signed numbers": (RNG.integers(-99, 99, N), "real"),
    "normal": (RNG.normal(size=N), "real"),
    "uniform": (RNG.random(N), "real"),
    "skewed and negative": (RNG.lognormal(0, 1.5, N) - 1, "real"),
    "lognormal": (RNG.lognormal(0, 1.5, N), "positive"),
    "lognormal decimals": ([Decimal(f"{v:.2f}") for v in RNG.lognormal(3, 1, N)], "positive"),
    "skewed by outliers": (tail(RNG.normal(9, 1, N).clip(0).tolist(), 99.0, 199.5), "real"),
    "large skewed numbers": (RNG.lognormal(10, 1.5, N).astype(int), "positive"),
    "text of numbers": (RNG.normal(size=N).astype(str), "real"),
    "dates": (WEEKS, "date"),
    "times": (TIMES, "date"),
    "times of a zone": (pa.array(TIMES, pa.timestamp("ms", "Asia/Tokyo")), "date"),
    "text of dates": ([str(day) for day in WEEKS], "date"),
    "text of times": ([f"{time.isoformat()}Z" for time in TIMES], "date"),
    "text of dates with gaps": (tail([str(day) for day in WEEKS], "NA", "", None), "date"),
    "nothing": (pa.nulls(N), "ignored"),
    "NaN": (np.full(N, np.nan), "ignored"),
    "empty text": ([""] * N, "ignored"),
    "one number": (np.full(N, 3.5), "ignored"),
    "one number and gaps": (repeat(3, None), "ignored"),
    "one word": (["a"] * N, "ignored"),
    "one boolean": ([True] * N, "ignored"),
    "one date": (WEEKS[:1] * N, "ignored"),
    "consecutive numbers": (RNG.permutation(N) + 17, "ignored"),
    "names": (PEOPLE, "ignored"),
    "codes of rows": ([f"{index:06d}" for index in range(N)], "ignored"),
    "sentences": (repeat("the same long text " * 4, "another long text " * 5, "b" * 99), "ignored"),
    "lists": ([[1.0]] * N, "ignored"),
    "durations": (np.arange(N).astype("m8[s]"), "ignored"),
    "bytes": (pa.array(repeat(b"\xff", b"\xfe", b"\xfd")), "ignored"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_column_is(name: str) -> None:
    values, kind = KINDS[name]
    assert find(values).kind == kind


REASONS: dict[str, tuple[Any, str]] = {
    "gaps": (pa.nulls(N), "all gaps"),
    "one value": ([1] * N, "one value only"),
    "id": (np.arange(N), "an id: whole numbers that are all different"),
    "names": (PEOPLE, "an id: 100% of its values are different"),
    "text": (["word " * 30] * 9 + ["other " * 30] * 9 + ["third " * 30] * 9, "free text"),
    "lists": ([[1.0]] * N, "of type list<item: double>"),
    "bytes": (pa.array(repeat(b"\xff", b"\xfe")), "of type bytes that are no text"),
}


@pytest.mark.parametrize("name", REASONS)
def test_why_a_column_is_left_out(name: str) -> None:
    values, reason = REASONS[name]
    schema = find_schema(pa.table({"a": values, "b": repeat(1, 2, rows=len(values))})).schema
    assert schema.ignored == {"a": reason}
    assert schema.sources == ("b",)


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        *((name, True) for name in ("id", "ID", "customer_id", "PassengerId", "row", "Unit Key")),
        *((name, False) for name in ("paid", "humid", "width", "identity", "monkey", "arrow")),
    ],
)
def test_names_of_ids(name: str, is_id: bool) -> None:
    assert is_id_name(name) == is_id
    values = RNG.choice(10**6, N, replace=False)
    assert (find(values, name).kind == "ignored") == is_id


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ([10, 9, 5_000], (0, 2)),
        ([5, 4, 991], (0, 2)),
        ([2, 1, 97], (0, 2)),
        ([1, 1, 1], ()),
        ([100_000] * 1_001 + [99], tuple(range(1_000))),
    ],
    ids=["large", "0.5 %", "small", "none", "too many"],
)
def test_rare_words_join_the_others(counts: list[int], kept: tuple[int, ...]) -> None:
    words = [str(index) for index in range(len(counts))]
    assert keep_words(words, np.array(counts)) == tuple(words[index] for index in kept)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (repeat("b", "a", "Ä"), ("a", "b", "Ä")),
        (repeat(20, 3, -1), ("-1", "3", "20")),
        (repeat(20.0, 3.0, None, -1.0), ("-1", "3", "20")),
        (repeat(True, False), ("false", "true")),
        (np.array(repeat(0.1, 2.0), np.float32), ("0.1", "2")),
        ([Decimal("0.10"), Decimal("2.00")] * 9, ("0.1", "2")),
    ],
    ids=["text", "numbers", "floats", "booleans", "float32", "decimals"],
)
def test_words_are_the_texts_of_the_values_in_order(values: Any, words: tuple[str, ...]) -> None:
    assert column(values).words == words


def test_gaps_are_a_share_of_the_rows() -> None:
    assert column(repeat("a", "b", "c", None)).missing == 0.25
    assert column(repeat(1.5, float("nan"), 7.25, 9.0, 11.5)).missing == 0.2
    assert find([str(day) for day in WEEKS[:8]] + ["NA", ""]).columns[0].missing == 0.2


@pytest.mark.parametrize(
    ("values", "origin"),
    [
        (RNG.normal(size=N), 0),
        (1e6 + RNG.normal(size=N), None),
        (1_600_000_000 + RNG.integers(0, 1000, N), None),
        (RNG.integers(0, 10**9, N), 0),
    ],
    ids=["small", "far", "stamps", "wide"],
)
def test_an_origin_keeps_what_float32_would_lose(values: Array, origin: float | None) -> None:
    found = column(values, kind="real")
    if origin is not None:
        assert found.origin == origin
    else:
        assert values.min() <= found.origin <= values.max()
        kept = (values - found.origin).astype(np.float32).astype(float) + found.origin
        assert np.std(kept - values) < 1e-6 * np.std(values)


def test_a_date_has_its_parts() -> None:
    day, weekday, month = find(WEEKS, "opened").columns
    assert (day.name, day.kind, day.part, day.type) == ("opened", "real", "day", "date")
    middle = dt.date(1970, 1, 1) + dt.timedelta(days=day.origin)
    assert WEEKS[0] < middle < WEEKS[-1]
    assert (weekday.name, weekday.source, len(weekday.words)) == ("opened.weekday", "opened", 7)
    assert (month.name, month.part, len(month.words)) == ("opened.month", "month", 12)


def test_a_time_has_its_hour_too() -> None:
    found = find(TIMES, "opened").columns
    assert [each.part for each in found] == ["day", "weekday", "month", "hour"]
    assert {each.type for each in found} == {"time"}


@pytest.mark.parametrize(
    ("dates", "parts"),
    [
        ([dt.date(1990 + index, 1, 1) for index in range(20)], ["day"]),
        ([dt.date(2000, 1 + index % 12, 1) for index in range(20)], ["day", "month"]),
        ([dt.date(2000, 1, 3 + 7 * index) for index in range(4)], ["day"]),
        ([dt.date(2000, 1, 3 + index) for index in range(9)], ["day", "weekday"]),
        ([dt.datetime(2000, 1, 3 + 7 * index, 12) for index in range(4)], ["day"]),
    ],
    ids=["years", "months", "weeks", "days", "noon"],
)
def test_parts_that_tell_no_dates_apart_are_left_out(dates: list[Any], parts: list[str]) -> None:
    assert [each.part for each in find(dates).columns] == parts


def test_parts_of_a_date_do_not_take_the_name_of_a_column() -> None:
    table = pa.table({"at": WEEKS, "at.month": RNG.normal(size=N)})
    names = [column.name for column in find_schema(table).schema.columns]
    assert names == ["at", "at.weekday", "at.month'", "at.month"]


NUMBERS = {"a": RNG.normal(size=N), "b": RNG.normal(size=N)}


@pytest.mark.parametrize(
    ("more", "plain"),
    [
        ({}, True),
        ({"c": np.full(N, 3.5)}, True),
        ({"c": RNG.integers(1950, 2020, N)}, True),
        ({"c": tail(RNG.normal(size=N).tolist(), None)}, False),
        ({"c": tail(RNG.normal(size=N).tolist(), float("nan"))}, False),
        ({"c": RNG.poisson(3, N)}, False),
        ({"c": repeat(True, False)}, False),
        ({"c": repeat("a", "b")}, False),
        ({"c": np.arange(N)}, False),
        ({"c": 1e7 + RNG.normal(size=N)}, False),
        ({"c": RNG.integers(0, 10**9, N)}, False),
        ({"a": repeat(0.0, 0.5, 1.0), "b": repeat(True, False)}, True),
        ({"a": repeat(0, 1), "b": repeat(0, 1, 1)}, True),
        ({"a": repeat(0, 1), "b": repeat(0, 1, None)}, False),
    ],
    ids=[
        *("real", "constant", "years", "gap", "NaN", "count", "bool", "text", "id", "far", "wide"),
        *("unit", "bits", "bits with a gap"),
    ],
)
def test_a_table_of_plain_numbers_needs_no_schema(more: dict[str, Any], plain: bool) -> None:
    assert find_schema(pa.table({**NUMBERS, **more})).is_plain == plain


def test_a_person_settles_what_a_column_is() -> None:
    counts = RNG.poisson(2, N)
    assert column(counts, kind="real") == Column(name="a", kind="real", type="int")
    assert column(counts, kind="category").words[:3] == ("0", "1", "2")
    chosen = column(repeat("a", "b", "c"), kind="category", words=("c", "new"))
    assert chosen.words == ("c", "new")
    ignored = find(counts, kind="ignored", reason="we do not know it")
    assert (ignored.columns, ignored.reason) == ((), "we do not know it")
    assert column(np.arange(N), kind="real").kind == "real"


@pytest.mark.parametrize(
    ("values", "settled", "message"),
    [
        ([0.5, 1.0], {"kind": "count"}, "cannot be count: it has fractions"),
        ([-1, 1], {"kind": "count"}, "negative values, down to -1"),
        ([-1.5, 1], {"kind": "positive"}, "negative values, down to -1.5"),
        ([1, 2, 3], {"kind": "binary"}, "it has 3 different values, and must have 2"),
        (["a", "b"], {"kind": "real"}, "it is text: allowed are binary, category, date"),
        (["1", "2"], {"kind": "count"}, "its numbers are text: allowed are real and category"),
        (["a", "b"], {"kind": "date"}, "its values are no dates of ISO 8601"),
        ([1, 2], {"kind": "date"}, "its values are no dates of ISO 8601"),
        (WEEKS, {"kind": "category"}, "its values are dates: allowed are date and ignored"),
        ([[1.0]], {"kind": "real"}, "it is of type list"),
        ([1, 2], {"kind": "category", "words": ("1", "b")}, "its values are numbers, and its"),
        ([1, 2], {"kind": "binary", "words": ("1", "1.0")}, "its words must be different numbers"),
        ([1, 2], {"kind": "binary", "words": ("1", "nan")}, "its words must be different numbers"),
        ([3, 3 * 10**7], {"kind": "count"}, "it reaches 3e[+]07, and counts go up to 16777216"),
        ([*map(str, range(90))], {"kind": "category"}, "none of its values comes often enough"),
        ([*range(90)], {"kind": "category"}, "none of its values comes often enough"),
    ],
)
def test_what_contradicts_the_values_is_refused(
    values: Any, settled: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataRefused, match=message):
        find(values, **settled)


def test_text_that_python_alone_reads_as_numbers_is_text() -> None:
    months = repeat(*(f"{year}_01" for year in range(2000, 2004)))
    assert column(months).words == ("2000_01", "2001_01", "2002_01", "2003_01")


def test_parts_of_a_date_have_names_of_their_own() -> None:
    days = np.arange("2020-01-01", "2020-04-10", dtype="M8[D]")
    names = ("d", "d.weekday", "d.weekday'", "d.month")
    table = pa.table({name: days if name == "d" else RNG.normal(size=100) for name in names})
    found = [each.name for each in find_schema(table).schema.columns]
    assert len(found) == len({*found}) == 6


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_tables_of_few_rows_are_measured(rows: int) -> None:
    table = pa.table({name: pa.array(values).slice(0, rows) for name, (values, _) in KINDS.items()})
    found = find_schema(table)
    assert len(found.columns) == len(KINDS)
    assert {each.reason for each in found.columns if rows == 1} <= {
        "one value only",
        "all gaps",
        "numbers",
        "whole numbers",
    } | {each.reason for each in found.columns if each.reason.startswith("of type")}


def test_ten_thousand_words_keep_the_frequent_ones() -> None:
    words = RNG.zipf(1.3, 50_000) % 10_000
    found = column(np.char.add("w", words.astype(str)))
    assert found.kind == "category"
    names, counts = np.unique(words, return_counts=True)
    assert {*found.words} == {f"w{name}" for name in names[counts >= 10].tolist()}


def test_blocks_and_samples_give_the_figures_of_each_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = RNG.lognormal(size=(500, 7))
    values[RNG.random(values.shape) < 0.1] = np.nan
    table = pa.table({str(index): values[:, index] for index in range(7)})
    monkeypatch.setattr("pipeline.data.column_figures._BLOCK_VALUES", 1_000)
    for index, figures in enumerate(measure(table).values()):
        known = values[~np.isnan(values[:, index]), index]
        assert isinstance(figures, NumberFigures)
        assert (figures.known, figures.low, figures.high) == (len(known), known.min(), known.max())
        centred = (known - known.mean()) / known.std()
        expected = [known.mean(), known.var(), np.mean(centred**3)]
        found = [figures.mean, figures.variance, figures.skewness]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert figures.sample_distinct == len(known)


def test_thousands_of_columns_are_found() -> None:
    values = RNG.normal(size=(50, 2_000))
    found = find_schema(pa.table({f"c{index}": values[:, index] for index in range(2_000)}))
    assert {each.kind for each in found.columns} == {"real"}
    assert found.is_plain


FINITE = st.floats(-1e30, 1e30)
LISTS = st.one_of(
    st.lists(st.none() | st.integers(-(2**62), 2**62), min_size=1),
    st.lists(st.none() | st.integers(-2, 4), min_size=1),
    st.lists(st.none() | FINITE | st.just(float("nan")), min_size=1),
    st.lists(st.none() | st.sampled_from([0.5, -0.0, 7.0]), min_size=1),
    st.lists(st.none() | st.booleans(), min_size=1),
    st.lists(st.none() | st.text(max_size=3), min_size=1),
    st.lists(st.none() | st.sampled_from(["", "NA", "1", "2020-01-01", "x"]), min_size=1),
    st.lists(st.none() | FINITE.map(str), min_size=1),
    st.lists(st.none() | st.dates(), min_size=1),
    st.lists(st.none() | st.datetimes(), min_size=1),
    st.lists(st.none() | st.datetimes().map(str), min_size=1),
    st.lists(st.none() | st.decimals(-(10**6), 10**6, places=2), min_size=1),
)


@given(LISTS)
@settings(max_examples=500, deadline=None)
def test_a_table_can_be_read_by_the_schema_that_is_found(values: list[Any]) -> None:
    """Gaps are where they were, and what is decoded is encoded as the same again."""
    (found,) = find_schema(pa.table({"a": pa.array(values * 2)})).columns
    if not found.columns:
        return
    schema = Schema(columns=found.columns)
    encoder = TableEncoder(schema)
    (batch,) = pa.table({"a": pa.array(values * 2)}).to_batches()
    cells = encode_batch(batch, encoder)
    assert not cells.faults.any()
    assert cells.new_gaps == {}
    gaps = np.isnan(cells.x[:, 0])
    assert np.mean(gaps) == pytest.approx(found.columns[0].missing)
    if found.columns[0].words:
        assert np.nanmax(cells.x) <= len(found.columns[0].words)
        assert len({*cells.x[~gaps, 0].tolist()}) > 1
    again = encode_batch(decode_batch(schema, cells.x), encoder)
    if not cells.unseen and found.columns[0].type != "time":
        np.testing.assert_array_equal(again.x, cells.x)
