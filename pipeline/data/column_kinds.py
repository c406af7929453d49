"""Choose what a column of a table is from its figures: the rules, and the thresholds with reasons.

In: the figures of a column. Out: its kind and why. `date` and `ignored` are kinds of a table's
column; all others are those of `serving.schema`.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.data.column_figures import (
    DateFigures,
    Figures,
    NumberFigures,
    TextFigures,
)
from serving.cell_values import GAP_WORDS, parse_instants, parse_numbers

TableKind = Literal["real", "positive", "count", "binary", "category", "date", "ignored"]
KINDS: tuple[str, ...] = get_args(TableKind)

MAX_CODES = 20
"""Whole numbers of more different values have an order that a model can use: they are no codes."""
CODE_ROWS = 5
"""So many rows a value on average show that the values of a column of codes come again."""
DISPERSION = 0.8
"""Variance of counts, as a share of their mean, at least: it is 1 for a Poisson distribution and
above it for the negative binomial one; below it, both would be too wide."""
THIN_TAIL = 0.25
"""The largest count is at most this share as frequent as the most frequent one; codes, such as
weekdays or marks, do not become rare towards the end."""
HEAD_SHARE = 0.95
"""The smallest counts, in this share of the rows, leave out no number; larger ones are rare, and
a table may have none of some."""
MAX_MEAN_COUNT = 1_000
"""Counts of a larger mean spread over so many values that steps of 1 make no difference."""
SKEWNESS = 2.0
"""That of an exponential distribution. A normal distribution fits less skewed values well enough,
and 1,000 values of one have a skewness above 0.3 once in 10,000 times."""
MIDDLE_SKEWNESS = 0.3
"""Kelly's skewness of the middle 90 % at least, so that a few outliers do not make a column skewed:
it is 0 for a normal distribution, 0.39 for a log-normal one of scale 0.5, 0.56 for an exponential
one."""
ID_ROWS = 20
"""Fewer whole numbers may be consecutive, and fewer texts all different, by chance."""
DISTINCT_SHARE = 0.5
"""Texts of which more than this share of the rows are different name their rows."""
LONG_TEXT = 60
"""Mean number of characters above which text is sentences; the longest names of countries, jobs and
products have about 50."""
WORD_ROWS, WORD_SHARE, LEAST_WORD_ROWS = 10, 0.005, 2
"""A word needs 10 rows to be learned, or in a small table 0.5 % of the rows, and 2 at least; rarer
ones join the other words."""
MAX_WORDS = 1_000
"""A category has at most so many words, the most frequent ones: each costs weights and time."""

_ID_NAME = re.compile(r"(?:^|[^a-z])(?:id|ids|uuid|guid|key|index|idx|rownum|row)$")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ISO_DATE = re.compile(r"\s*\d{4}-\d\d-\d\d")
_LEADING_ZERO = re.compile(r"\s*[-+]?0\d")


class Choice(NamedTuple):
    """What a column is, and why."""

    kind: TableKind
    reason: str


def choose_kind(name: str, figures: Figures) -> Choice:
    """Choose the kind of a column."""
    if not figures.known:
        return Choice("ignored", "all gaps")
    if isinstance(figures, NumberFigures):
        return _choose_for_numbers(name, figures)
    if isinstance(figures, TextFigures):
        return _choose_for_text(figures)
    if isinstance(figures, DateFigures):
        one = figures.low == figures.high
        return Choice("ignored", "one value only") if one else Choice("date", "dates")
    return Choice("ignored", f"of type {figures.type}")


def _choose_for_text(figures: TextFigures) -> Choice:
    distinct, known = len(figures.words), figures.known
    if distinct == 1:
        return Choice("ignored", "one value only")
    if are_dates(figures.words):
        return Choice("date", "text of dates")
    if distinct == 2:
        return Choice("binary", "two values")
    if figures.mean_length > LONG_TEXT:
        return Choice("ignored", "free text")
    if distinct <= DISTINCT_SHARE * known or (known < ID_ROWS and distinct < known):
        if kept := keep_words(figures.words, figures.counts):
            rare = f", {distinct - len(kept):,} of them rare" if len(kept) < distinct else ""
            return Choice("category", f"{distinct:,} words{rare}")
    elif are_numbers(figures.words):
        return Choice("real", "text of numbers")
    share = distinct / known
    return Choice("ignored", f"an id: {share:.0%} of its values are different")


def _choose_for_numbers(name: str, figures: NumberFigures) -> Choice:
    few = figures.sample_distinct <= MAX_CODES and not figures.infinite
    words, counts = figures.count_values() if few else ([], np.zeros(0, np.int64))
    if len(words) == 1:
        return Choice("ignored", "one value only")
    if len(words) == 2 and (figures.type != "float" or figures.known > 2):
        return Choice("binary", "two values")
    if figures.type != "int":
        return _choose_for_size(figures)
    if _is_id(name, figures):
        return Choice("ignored", "an id: whole numbers that are all different")
    repeated = 2 < len(words) <= MAX_CODES and figures.known >= CODE_ROWS * len(words)
    spread = figures.variance / figures.mean if figures.mean > 0 else 0.0
    if repeated and not (_are_ordered(words, counts) and spread >= DISPERSION):
        return Choice("category", f"{len(words)} whole numbers, which are no counts")
    if figures.low >= 0 and spread >= DISPERSION and figures.mean <= MAX_MEAN_COUNT:
        return Choice("count", f"whole numbers, variance {spread:.3g} times the mean")
    return _choose_for_size(figures)


def _choose_for_size(figures: NumberFigures) -> Choice:
    skewed = figures.skewness > SKEWNESS and figures.middle_skewness > MIDDLE_SKEWNESS
    if figures.low >= 0 and skewed and abs(figures.log_skewness) < figures.skewness:
        return Choice("positive", f"skewness {figures.skewness:.3g}")
    return Choice("real", "whole numbers" if figures.type == "int" else "numbers")


def _is_id(name: str, figures: NumberFigures) -> bool:
    """Whether whole numbers name the rows: all different, and consecutive or named like an id."""
    known = figures.known
    if known < ID_ROWS or figures.sample_distinct < figures.sample_rows or figures.infinite:
        return False
    consecutive = figures.high - figures.low == known - 1
    if not consecutive and not is_id_name(name):
        return False
    return len(np.unique(figures.read())) == known


def is_id_name(name: str) -> bool:
    """Whether a column is named like an id: `id`, `customer_id`, `PassengerId`, `row`."""
    return _ID_NAME.search(_CAMEL.sub("_", name).lower().strip()) is not None


def _are_ordered(words: Sequence[str], counts: NDArray[Any]) -> bool:
    """Whether whole numbers begin at 0 or 1, follow each other, and become rare towards the end."""
    head = int(np.searchsorted(np.cumsum(counts), HEAD_SHARE * counts.sum()))
    first, last = float(words[0]), float(words[head])
    follow = last - first == head
    return first in (0, 1) and follow and bool(counts[-1] <= THIN_TAIL * counts.max())


def are_dates(words: Sequence[str]) -> bool:
    """Whether all texts are dates of ISO 8601, such as `2026-11-27` and `2026-11-27 20:15`."""
    known = [word for word in words if word.strip() not in GAP_WORDS]
    if not known or not all(map(_ISO_DATE.match, known)):
        return False
    return not parse_instants(known)[1].any()


def are_numbers(words: Sequence[str]) -> bool:
    """Whether all texts are numbers; such as `007` are codes."""
    if any(map(_LEADING_ZERO.match, words)):
        return False
    numbers, faults = parse_numbers(words)
    return not faults.any() and not np.isnan(numbers).all()


def keep_words(words: Sequence[str], counts: NDArray[Any]) -> tuple[str, ...]:
    """Return the words that are frequent enough to be learned, in their order."""
    least = min(WORD_ROWS, max(LEAST_WORD_ROWS, WORD_SHARE * counts.sum()))
    kept = np.flatnonzero(counts >= least)
    if len(kept) > MAX_WORDS:
        kept = np.sort(kept[np.argsort(-counts[kept], kind="stable")[:MAX_WORDS]])
    return tuple(words[place] for place in kept.tolist())
