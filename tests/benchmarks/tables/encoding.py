"""Tables as matrices of numbers, for peers that take nothing else: the same for each of them.

It is what a competent user of scikit-learn would write. A number is standardised. A date is its
day, standardised, and the sine and cosine of the year, the week and the day. Text and flags are
one-hot; words of less than a hundredth of the rows share one column, and so do unseen ones. A gap
is the median of a number, and a word of its own in text; for numbers and dates with gaps in
training another column says where. A column of the matrix that is constant in training is dropped.

`Encoder.implied` says which columns are linear in others, for peers that must not have such.

With `fill` off, gaps stay as NaN, for peers that fill them, and the columns that say where they
are hold zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.benchmarks.tables.anomalies import is_measured

Matrix = NDArray[np.float64]

RARE_SHARE = 0.01
"""PyOD and scikit-learn advise to pool rare words; scikit-learn's own examples take a hundredth."""
PERIODS_DAYS = (365.2425, 7.0, 1.0)


class Code(Protocol):
    """How one column of a table becomes columns of a matrix."""

    def encode(self, column: pd.Series, fill: bool) -> Matrix:
        """Return (rows, width) numbers."""

    def decode(self, matrix: Matrix) -> pd.Series:
        """Return values for (rows, width) numbers, which may be estimates."""


@dataclass(frozen=True, slots=True)
class MeasureCode:
    """Numbers, or dates as days since 1970."""

    is_date: bool
    median: float
    loc: float
    scale: float
    has_gaps: bool

    def encode(self, column: pd.Series, fill: bool) -> Matrix:
        """Return standardised numbers, for dates their phases, and where gaps are."""
        values = measure(column)
        gaps = np.isnan(values)
        if fill:
            values = np.where(gaps, self.median, values)
        parts = [(values - self.loc) / self.scale]
        if self.is_date:
            for period in PERIODS_DAYS:
                phase = 2 * np.pi * values / period
                # Rounded, so that the phase of a whole day is 0 and not 1e-13 times the date.
                parts += [np.sin(phase).round(9), np.cos(phase).round(9)]
        if self.has_gaps:
            parts.append((gaps & fill).astype(np.float64))
        return np.stack(parts, axis=1)

    def decode(self, matrix: Matrix) -> pd.Series:
        """Return numbers, or dates, from the first column."""
        values = pd.Series(matrix[:, 0] * self.scale + self.loc)
        if self.is_date:
            return pd.to_datetime(values * 86400, unit="s").dt.as_unit("us")
        return values


@dataclass(frozen=True, slots=True)
class WordCode:
    """Text or flags: `words`, then those that share a column, then gaps."""

    words: tuple[object, ...]
    rest: tuple[object, ...]
    has_gaps: bool

    def encode(self, column: pd.Series, fill: bool) -> Matrix:
        """Return a one-hot row for each value."""
        index = {word: place for place, word in enumerate(self.words)}
        gaps = column.isna().to_numpy(bool)
        codes = np.array([index.get(value, len(index)) for value in column], np.intp)
        codes[gaps] = len(index) + 1
        matrix = np.eye(len(index) + 2)[codes]
        if not fill:
            matrix[gaps] = np.nan
        return matrix

    def decode(self, matrix: Matrix) -> pd.Series:
        """Return the word of the largest number; for those that share one, the most frequent."""
        words = [*self.words, *self.rest[:1]]
        best = matrix[:, : len(words)].argmax(axis=1)
        return pd.Series([words[place] for place in best])


@dataclass(frozen=True, slots=True)
class Encoder:
    """The codes of a table's columns, and which columns of the matrix are kept."""

    names: tuple[str, ...]
    codes: tuple[Code, ...]
    widths: tuple[int, ...]
    constant: Matrix
    """One row: the value of what is constant, NaN for what is kept."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Return which columns of the whole matrix are kept."""
        return np.isnan(self.constant)

    @property
    def owners(self) -> NDArray[np.intp]:
        """Return the table's column that each column of the matrix belongs to."""
        return np.repeat(np.arange(len(self.names)), self.widths)[self.kept]

    @property
    def implied(self) -> NDArray[np.bool_]:
        """Return which columns of the matrix are one minus the others of their column of text."""
        starts = np.cumsum((0, *self.widths[:-1]))
        is_word = [isinstance(code, WordCode) for code in self.codes]
        return np.isin(np.arange(sum(self.widths)), starts[is_word])[self.kept]

    def encode(self, rows: pd.DataFrame, fill: bool = True) -> Matrix:
        """Return the matrix of rows."""
        return encode_all(self.names, self.codes, rows, fill)[:, self.kept]

    def decode(self, matrix: Matrix) -> pd.DataFrame:
        """Return the table of a matrix."""
        whole = np.tile(self.constant, (len(matrix), 1))
        whole[:, self.kept] = matrix
        parts = np.split(whole, np.cumsum(self.widths)[:-1], axis=1)
        columns = zip(self.names, self.codes, parts, strict=True)
        return pd.DataFrame({name: code.decode(part) for name, code, part in columns})


def fit_encoder(train: pd.DataFrame) -> Encoder:
    """Return the encoder for a table, from its training rows."""
    names = tuple(train.columns)
    codes = tuple(fit_code(train[name]) for name in names)
    widths = tuple(
        code.encode(train[name][:1], True).shape[1] for name, code in zip(names, codes, strict=True)
    )
    whole = encode_all(names, codes, train, True)
    constant = np.where(whole.min(axis=0) == whole.max(axis=0), whole[0], np.nan)
    return Encoder(names, codes, widths, constant)


def fit_code(column: pd.Series) -> Code:
    """Return the code for a column, from its training rows."""
    if is_measured(column):
        values = measure(column)
        seen = values[~np.isnan(values)]
        is_date = pd.api.types.is_datetime64_any_dtype(column)
        has_gaps = len(seen) < len(values)
        if not len(seen):
            return MeasureCode(is_date, 0.0, 0.0, 1.0, has_gaps)
        scale = float(seen.std()) or 1.0
        return MeasureCode(is_date, float(np.median(seen)), float(seen.mean()), scale, has_gaps)
    counts = column.value_counts()
    frequent = counts.to_numpy() >= max(2, RARE_SHARE * len(column))
    words = tuple(counts.index[frequent]) or tuple(counts.index[:1])
    rest = tuple(counts.index[len(words) :])
    return WordCode(words, rest, bool(column.isna().any()))


def encode_all(
    names: Sequence[str], codes: Sequence[Code], rows: pd.DataFrame, fill: bool
) -> Matrix:
    """Return the whole matrix of rows, constant columns included."""
    pairs = zip(names, codes, strict=True)
    return np.concatenate([code.encode(rows[name], fill) for name, code in pairs], axis=1)


def measure(column: pd.Series) -> Matrix:
    """Return numbers as float64, and dates as days since 1970; gaps are NaN."""
    if not pd.api.types.is_datetime64_any_dtype(column):
        return column.to_numpy(np.float64, na_value=np.nan)
    seconds = column.astype("datetime64[s]")
    days = seconds.astype("int64").to_numpy() / 86400
    return np.where(column.isna().to_numpy(bool), np.nan, days)
