"""Read the values of cells: gaps, numbers in text, dates in text, and objects of several types.

In: numpy arrays of any type. Out: arrays of one type each. A text that means no number or no date
is marked, and is never an error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

US_PER_DAY = 86_400_000_000
GAP_WORDS = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
        *("1.#QNAN", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"),  # pyarrow's own
        *("None", "none", "Null", "<NA>", "NaT", "?", "-", "."),
    )
)
"""Texts that are a gap in a column of numbers, booleans or dates; in one of text only "" is."""
_NUMBER_WORDS = {"false": 0.0, "true": 1.0}
_MICROSECONDS = "M8[us]"


def find_gaps(values: Array, missing: Array | None = None) -> NDArray[np.bool_]:
    """Return which values (rows,) are gaps: `missing`, None, NaN, NaT or an empty text."""
    kind = values.dtype.kind
    if kind == "O":
        gaps = np.fromiter(map(_is_gap, values), bool, len(values))
    elif kind in "SUT":
        gaps = np.asarray(values == (b"" if kind == "S" else ""))
    elif kind == "f":
        gaps = np.isnan(values)
    elif kind == "M":
        gaps = np.isnat(values)
    else:
        gaps = np.zeros(len(values), bool)
    return gaps if missing is None else np.asarray(gaps | missing)


def _is_gap(value: object) -> bool:
    try:
        return value is None or value == "" or value == b"" or bool(value != value)
    except (TypeError, ArithmeticError):  # pandas.NA, and a signalling NaN of decimals
        return True


def number_text(value: Any) -> str:
    """Return the one text of a number or a boolean: `3`, `0.5`, `true`."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    number = float(value)
    if math.isfinite(number) and number.is_integer():
        return str(int(number))
    narrow = isinstance(value, np.floating) and value.dtype.itemsize < 8
    return str(np.float32(value)) if narrow else repr(number)


def instant_text(value: Any) -> str:
    """Return the one text of a date or a time: `2026-12-31`, `2026-12-31T23:59:00.000000`."""
    return str(value.astype(_MICROSECONDS)).removesuffix("T00:00:00.000000")


def parse_number(text: str) -> float:
    """Return the number that a text is, or that `true` and `false` stand for.

    Raises:
        ValueError: it is none.
    """
    known = _NUMBER_WORDS.get(text.strip().lower())
    if known is not None:
        return known
    if "_" in text or not text.isascii():  # Python reads 2024_01 as 202401
        raise ValueError(f"{text!r} is no number")
    return float(text)


def parse_numbers(words: Sequence[str]) -> tuple[Array, NDArray[np.bool_]]:
    """Return numbers (words,), NaN for gaps, and which words are neither."""
    numbers, faults = np.full(len(words), np.nan), np.zeros(len(words), bool)
    for index, word in enumerate(words):
        if (text := word.strip()) not in GAP_WORDS:
            try:
                numbers[index] = parse_number(text)
            except ValueError:
                faults[index] = True
    return numbers, faults


def parse_instants(words: Sequence[str]) -> tuple[Array, NDArray[np.bool_]]:
    """Return dates and times of ISO 8601 as microseconds in UTC, and which words are none.

    A gap is NaT; a time without a zone is taken for UTC.
    """
    instants, faults = np.full(len(words), "NaT", _MICROSECONDS), np.zeros(len(words), bool)
    for index, word in enumerate(words):
        if (text := word.strip()) not in GAP_WORDS:
            try:
                instants[index] = _to_utc(datetime.fromisoformat(text))
            except (ValueError, OverflowError):  # a zone may lead out of the years 1 to 9999
                faults[index] = True
    return instants, faults


def to_instants(values: Array) -> Array:
    """Return dates and times of any unit as microseconds, rounded down."""
    return values.astype(_MICROSECONDS)


def _to_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class DistinctValues:
    """Distinct values of three types, in this order."""

    words: Sequence[str]
    numbers: Array
    instants: Array


def factorize(values: Array, as_words: bool = False) -> tuple[DistinctValues, Array]:
    """Return the distinct values of text or objects (rows,) without gaps, and their places (rows,).

    Booleans are the words `true` and `false`; numbers are words if `as_words` is set.
    """
    if values.dtype.kind in "SUT":
        distinct, places = np.unique(values, return_inverse=True)
        words = [_to_text(word) for word in distinct.tolist()]
        return DistinctValues(words, np.empty(0), np.empty(0, _MICROSECONDS)), places
    seen: dict[tuple[type, Any], int] = {}  # by type, too: True equals 1
    places = np.fromiter(
        (seen.setdefault((type(value), value), len(seen)) for value in values),
        np.int64,
        len(values),
    )
    items = [_classify(value, as_words) for _, value in seen]
    kinds = np.array([kind for kind, _ in items], np.int64)
    by_kind = [[value for kind, value in items if kind == own] for own in range(3)]
    order = np.empty(len(items), np.int64)
    order[np.argsort(kinds, kind="stable")] = np.arange(len(items))
    numbers, instants = np.array(by_kind[1], np.float64), np.array(by_kind[2], _MICROSECONDS)
    return DistinctValues(by_kind[0], numbers, instants), order[places]


def _to_text(word: str | bytes) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else word


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


_WORD, _NUMBER, _INSTANT = range(3)


def _classify(value: Any, as_words: bool) -> tuple[int, Any]:
    if isinstance(value, str | bytes):
        return _WORD, _to_text(value)
    if isinstance(value, bool | np.bool_):
        return _WORD, number_text(value)
    if isinstance(value, int | float | Decimal | np.number):
        return (_WORD, number_text(value)) if as_words else (_NUMBER, _to_float(value))
    if isinstance(value, np.datetime64):
        return _INSTANT, value.astype(_MICROSECONDS)
    if isinstance(value, datetime):
        try:
            return _INSTANT, np.datetime64(_to_utc(value), "us")
        except OverflowError:  # its zone leads out of the calendar: no date can be read from it
            return _WORD, str(value)
    if isinstance(value, date):
        return _INSTANT, np.datetime64(value).astype(_MICROSECONDS)
    return _WORD, str(value)
