from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from serving.errors import UsageRefused
from serving.io.row_filter import parse_row_filter

ROWS: list[dict[str, Any]] = [
    {"label": 1, "split": "test", "a b": 1.5, "flag": True},
    {"label": 9, "split": "test", "a b": 2.0, "flag": False},
    {"label": None, "split": "train", "a b": 3.0, "flag": True},
    {"label": 3, "split": "test", "a b": 4.0, "flag": None},
    {"label": -4, "split": None, "a b": -1.0, "flag": False},
]
BATCH = pa.RecordBatch.from_pylist(ROWS)

Row = dict[str, Any]
FILTERS: dict[str, Callable[[Row], Any]] = {
    "label != 9 and split == 'test'": lambda r: r["label"] != 9 and r["split"] == "test",
    "label in (1, 3)": lambda r: r["label"] in (1, 3),
    "label not in [1]": lambda r: r["label"] is not None and r["label"] != 1,
    "label is None": lambda r: r["label"] is None,
    "label is not None": lambda r: r["label"] is not None,
    "0 < label < 9": lambda r: r["label"] is not None and 0 < r["label"] < 9,
    "not label == 9": lambda r: r["label"] is not None and r["label"] != 9,
    "col('a b') >= 2": lambda r: r["a b"] >= 2,
    "2 <= col('a b')": lambda r: r["a b"] >= 2,
    "flag": lambda r: r["flag"] is True,
    "label == -4 or flag and label <= 1": lambda r: r["label"] in (-4, 1),
    "split == 'none'": lambda r: False,
}


@pytest.mark.parametrize(("text", "python"), FILTERS.items(), ids=FILTERS.keys())
def test_a_filter_keeps_the_rows_that_python_would(text: str, python: Callable[[Row], Any]) -> None:
    assert parse_row_filter(text, BATCH.schema).apply(BATCH).to_pylist() == [
        row for row in ROWS if python(row)
    ]


def test_a_filter_knows_its_columns() -> None:
    where = parse_row_filter("flag or col('a b') < 1 and flag", BATCH.schema)
    assert where.columns == ("a b", "flag")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "__import__('os').system('x')",
            "does not accept \"__import__('os').system('x')\"; allowed are",
        ),
        ("label.real == 1", "does not accept 'label.real'; allowed are"),
        ("label + 1 == 2", "does not accept 'label + 1'; allowed are"),
        ("label is 1", "does not accept '1'; allowed are"),
        ("label in split", "does not accept 'split'; allowed are"),
        ("label == (1,)", "does not accept '(1,)'; allowed are"),
        ("[1 for x in label]", "does not accept '[1 for x in label]'; allowed are"),
        ("lambda: 1", "does not accept 'lambda: 1'; allowed are"),
        ("col(label) == 1", "does not accept 'col(label)'; allowed are"),
        ("label ==", "cannot be read; allowed are"),
        ("label == 1; flag", "cannot be read; allowed are"),
        ("(" * 500, "cannot be read; allowed are"),
        ("lable == 1", "the input has no column 'lable'; it has label, split, a b, flag"),
        ("label == 'a'", "column label is int64: compare it with a number, got"),
        ("9 < label < '10'", "column label is int64: compare it with a number, got the text '10'"),
        ("flag == 'yes'", "column flag is bool: compare it with True or False, got the text"),
        ("split == 3", "column split holds text: compare it with '3' in quotes"),
        ("-1.5 != col('split')", "column split holds text: compare it with '-1.5' in quotes"),
        ("split in ('test', 3)", "column split holds text: compare it with '3' in quotes"),
        ("label", "does not fit the columns: "),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageRefused) as caught:
        parse_row_filter(text, BATCH.schema)
    assert message in str(caught.value)
