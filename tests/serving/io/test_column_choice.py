from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from serving.errors import DataRefused, UsageRefused
from serving.io.arrow_types import EXAMPLE
from serving.io.column_choice import RowLayout, choose_columns, require_columns

BYTES = RowLayout((2, 3), np.dtype("u1"), unit_range=False)
LIST = pa.list_(pa.uint8())


@pytest.mark.parametrize(
    ("names", "asked", "ids", "chosen"),
    [
        ({"label": pa.int64(), "x": LIST, "image": LIST}, (), (), ("x",)),
        ({"label": pa.int64(), "image": LIST}, (), (), ("image",)),
        ({"y": LIST, "x": LIST}, ("y",), (), ("y",)),
        ({f"c{i}": pa.int64() for i in range(6)}, (), (), tuple(f"c{i}" for i in range(6))),
        (
            {"id": pa.int64(), "s": pa.string(), **{f"c{i}": pa.float32() for i in range(6)}},
            (),
            ("id",),
            tuple(f"c{i}" for i in range(6)),
        ),
    ],
    ids=["x", "image", "asked", "all numbers", "numbers without ids"],
)
def test_the_columns_are_chosen(
    names: dict[str, pa.DataType],
    asked: tuple[str, ...],
    ids: tuple[str, ...],
    chosen: tuple[str, ...],
) -> None:
    assert choose_columns(pa.schema(list(names.items())), asked, ids, BYTES) == chosen


NAMED = replace(BYTES, dtype=np.dtype("f4"), columns=tuple("abcdef"))


@pytest.mark.parametrize(
    ("names", "asked", "chosen"),
    [("ifedcba", "", "abcdef"), ("uvwxyz", "uvwxyz", "uvwxyz"), ("xi", "", "x")],
    ids=["by name", "asked", "a column x"],
)
def test_the_models_own_columns_are_taken_in_its_order(names: str, asked: str, chosen: str) -> None:
    schema = pa.schema([(name, LIST if names == "xi" else pa.float32()) for name in names])
    assert choose_columns(schema, tuple(asked), (), NAMED) == tuple(chosen)


def test_a_column_of_text_is_told_with_a_value_of_it() -> None:
    """Pyarrow takes a column of a CSV for text where one of its values is a word."""
    fields = {name: pa.field(name, pa.float64()) for name in "abcdef"}
    fields["e"] = pa.field("e", pa.string(), metadata={EXAMPLE: b"1,\n234.5"})
    with pytest.raises(DataRefused) as caught:
        choose_columns(pa.schema(fields.values()), (), (), NAMED)
    assert str(caught.value) == (
        "each of several columns must be numbers, got e (string, such as '1, 234.5')"
    )


def test_numbers_of_other_names_are_not_taken_for_the_models_own() -> None:
    schema = pa.schema([(name, pa.float32()) for name in "abcdex"])
    with pytest.raises(
        UsageRefused, match=r"no column 'f', which .* that hold a, b, c, d, e, f\. The"
    ):
        choose_columns(schema, (), (), NAMED)


@pytest.mark.parametrize(
    ("names", "asked", "error", "message"),
    [
        ({"y": LIST}, ("x",), UsageRefused, "no column 'x'; it has y (list<item: uint8>)"),
        ({"y": LIST}, (), UsageRefused, "0 are numbers, but the model takes 6; name them by --x."),
        ({"a": pa.int64(), "b": pa.int8()}, ("a", "b"), DataRefused, "x takes 6 columns of"),
        (
            {"a": pa.int64(), "b": LIST},
            ("a", "b"),
            DataRefused,
            "each of several columns must be numbers, got b (list",
        ),
        ({"x": pa.string()}, (), DataRefused, "column 'x' is string; x can be bytes"),
        (
            {"x": pa.binary(5)},
            (),
            DataRefused,
            "column 'x' has 5 bytes per row, but x takes 6: (2, 3)",
        ),
        ({"x": pa.list_(pa.uint8(), 5)}, (), DataRefused, "x takes rows of (2, 3)"),
        ({"x": pa.list_(pa.list_(pa.uint8(), 2), 3)}, (), DataRefused, "x takes rows of (2, 3)"),
        ({"x": pa.list_(pa.string())}, (), DataRefused, "x can be bytes, a list of numbers"),
    ],
    ids=["none", "no numbers", "few", "list of many", "text", "bytes", "list", "turned", "texts"],
)
def test_columns_that_cannot_hold_x_are_refused(
    names: dict[str, pa.DataType], asked: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        choose_columns(pa.schema(list(names.items())), asked, (), BYTES)
    assert message in str(caught.value)


def test_the_default_ids_are_not_listed_as_columns_of_the_input() -> None:
    text = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema({"y": pa.int8(), "file": text, "row": pa.int64()})
    for asked in ((), ("x",)):
        with pytest.raises(UsageRefused, match=r"has y \(int8\)$"):
            choose_columns(schema, asked, ("file", "row"), BYTES)
    with pytest.raises(UsageRefused, match=r"it has y \(int8\), file .*, row \(int64\)$"):
        choose_columns(schema, ("x",), ("row",), BYTES)


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    schema = pa.schema({"a": pa.int8(), "b": pa.string()})
    require_columns("x.csv", schema, ["b", "a"])
    with pytest.raises(UsageRefused) as caught:
        require_columns("x.csv", schema, ["b", "c"])
    assert str(caught.value) == "x.csv has no column 'c'; it has a (int8), b (string)"
