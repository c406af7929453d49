"""Splits of a table by seed, and three kinds of unusual rows among those of the test.

`minority`: rows of the rare class that the catalogue names. Training sees none of them, and no row
has the column that says so.

`swapped`: a third of the cells of a row, at least two, come from one other row. Cells are drawn
anew until two of them differ, a gap being a value of its own.

`changed`: one cell, of a column drawn evenly, comes from another row. Neither value is a gap, and
they differ: for numbers and dates by more than a quarter of the rows in rank (`RANK_APART`), where
a value's rank is the share of the rows below it plus half of those equal to it.

Rows are test rows of the same seed in every kind, donors included, so that each value is one that
the table has. `swapped` and `changed` share their training rows, so that one model serves both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.benchmarks.tables.catalog import TABLES
from tests.benchmarks.tables.load import load_table

Kind = Literal["minority", "swapped", "changed"]
Make = Callable[[pd.DataFrame, NDArray[np.intp], np.random.Generator], NDArray[np.intp]]
"""(rows, those to make unusual, generator) -> the row that each cell comes from."""

KINDS: tuple[Kind, ...] = ("minority", "swapped", "changed")
TEST_SHARE = 0.3
UNUSUAL_SHARE = 0.25
"""The share of the test rows that are unusual; of a minority class there may be fewer."""
TRAIN_ROWS = 5000
TEST_ROWS = 2000
RANK_APART = 0.25
TRIES = 1000


class NoSplit(Exception):
    """A table has no rare class, or its rows are too alike to be made unusual."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to train on, which the trainer may divide again, and rows to score.

    `unusual` has a bool for each row of `test`. `changed` names, for each row of `test`, the
    column whose cell was changed; it is empty for clean rows and for the other kinds.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    unusual: NDArray[np.bool_]
    changed: tuple[str, ...]


def split_table(
    name: str, kind: Kind, seed: int, train_rows: int = TRAIN_ROWS, test_rows: int = TEST_ROWS
) -> Split:
    """Return the split of a table of the catalogue; of a large one, at most so many rows."""
    table, rng = load_table(name), np.random.default_rng(seed)
    if kind != "minority":
        return split_rows(table, kind, rng, train_rows, test_rows)
    if (rare := TABLES[name].minority) is None:
        raise NoSplit(f"table {name!r} has no rare class")
    is_rare = (table[rare.column] == rare.value).fillna(False).to_numpy(bool)
    known = table[~is_rare].drop(columns=[rare.column, *rare.hides])
    others = table[is_rare].drop(columns=[rare.column, *rare.hides])
    train, test = divide(known, rng, train_rows, round(test_rows * (1 - UNUSUAL_SHARE)))
    most = round(len(test) * UNUSUAL_SHARE / (1 - UNUSUAL_SHARE))
    others = others.iloc[rng.permutation(len(others))[:most]]
    unusual = np.arange(len(test) + len(others)) >= len(test)
    rows = pd.concat([test, others], ignore_index=True)
    return Split(train, rows, unusual, ("",) * len(rows))


def split_rows(
    table: pd.DataFrame,
    kind: Literal["swapped", "changed"],
    rng: np.random.Generator,
    train_rows: int,
    test_rows: int,
) -> Split:
    """Divide the rows, and make some of the test's unusual by cells of other rows."""
    train, test = divide(table, rng, train_rows, test_rows)
    chosen = np.sort(rng.permutation(len(test))[: round(len(test) * UNUSUAL_SHARE)])
    make: Make = swap_cells if kind == "swapped" else change_cells
    source = make(test, chosen, rng)
    columns = np.array(test.columns)
    names = [""] * len(test)
    if kind == "changed":
        for row in chosen:
            names[row] = str(columns[source[row] != row][0])
    unusual = np.isin(np.arange(len(test)), chosen)
    return Split(train, take_cells(test, source), unusual, tuple(names))


def divide(
    table: pd.DataFrame, rng: np.random.Generator, train_rows: int, test_rows: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return rows to train on and clean rows to test, in random order."""
    order, tests = rng.permutation(len(table)), round(len(table) * TEST_SHARE)
    train = table.iloc[order[tests:][:train_rows]].reset_index(drop=True)
    return train, table.iloc[order[:tests][:test_rows]].reset_index(drop=True)


def take_cells(rows: pd.DataFrame, source: NDArray[np.intp]) -> pd.DataFrame:
    """Return rows whose cell (i, j) is that of row `source[i, j]` in column j."""
    columns = {name: rows[name].array.take(source[:, j]) for j, name in enumerate(rows.columns)}
    return pd.DataFrame(columns)


def swap_cells(
    rows: pd.DataFrame, chosen: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return the row that each cell comes from, of shape (rows, columns); see `swapped` above."""
    codes, source = encode(rows), stay(rows)
    count = max(2, round(codes.shape[1] / 3))
    for row in chosen:
        for _ in range(TRIES):
            donor = rng.integers(len(rows))
            cells = rng.choice(codes.shape[1], count, replace=False)
            if (codes[row, cells] != codes[donor, cells]).sum() >= 2:
                source[row, cells] = donor
                break
        else:
            raise NoSplit("the rows are too alike to swap two cells that differ")
    return source


def change_cells(
    rows: pd.DataFrame, chosen: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return the row that each cell comes from, of shape (rows, columns); see `changed` above."""
    source, values = stay(rows), [place(rows[name]) for name in rows]
    for row in chosen:
        for column in rng.permutation(len(values)):
            apart, here = values[column]
            donors = np.flatnonzero(np.abs(here - here[row]) > apart)
            if len(donors):
                source[row, column] = rng.choice(donors)
                break
        else:
            raise NoSplit("the rows are too alike to change a cell")
    return source


def place(column: pd.Series) -> tuple[float, NDArray[np.float64]]:
    """Return how far apart two values must be, and each cell's place; a gap has none (NaN)."""
    if is_measured(column):
        return RANK_APART, np.asarray(column.rank(method="average", pct=True), np.float64)
    codes = pd.factorize(column)[0].astype(np.float64)
    codes[codes < 0] = np.nan
    return 0.5, codes


def is_measured(column: pd.Series) -> bool:
    """Return whether values have an order: numbers and dates, not text and flags."""
    types = pd.api.types
    if types.is_bool_dtype(column):
        return False
    return types.is_numeric_dtype(column) or types.is_datetime64_any_dtype(column)


def encode(rows: pd.DataFrame) -> NDArray[np.intp]:
    """Return equal codes for equal cells of a column, -1 for a gap, of shape (rows, columns)."""
    return np.stack([pd.factorize(rows[name])[0] for name in rows], axis=1)


def stay(rows: pd.DataFrame) -> NDArray[np.intp]:
    """Return each cell's own row, of shape (rows, columns)."""
    return np.tile(np.arange(len(rows))[:, None], (1, rows.shape[1]))
