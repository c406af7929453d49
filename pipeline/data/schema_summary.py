"""Say what the columns of a table are, as lines for a person."""

import numpy as np

from pipeline.data.column_figures import DateFigures, NumberFigures, TextFigures
from pipeline.data.schema_search import FoundColumn, FoundSchema

_NAME, _VALUES = 32, 40
_WORDS = 4
_HEAD = ("column", "is", "values", "gaps", "because")


def summarize(source: object, found: FoundSchema, most: int | None = None) -> str:
    """Return a table of the columns, at most so many lines, and the number of those left out."""
    shown = found.columns[:most]
    lines = [_HEAD, *map(_describe, shown)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(_HEAD) - 1)]
    rows = [
        "  "
        + "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]
        )
        for line in lines
    ]
    if more := len(found.columns) - len(shown):
        rows.append(f"  … and {more:,} more")
    schema = found.schema
    used = len(schema.sources)
    said = f"{source}: {used:,} of {len(found.columns):,} columns are learned"
    if len(schema.columns) > used:
        said += f", as {len(schema.columns):,} columns of x"
    return "\n".join([said, *map(str.rstrip, rows)])


def _describe(found: FoundColumn) -> tuple[str, ...]:
    figures = found.figures
    share = figures.gaps / max(1, figures.rows)
    gaps = f"{share:.1%}" if share else ""
    return (
        _cut(found.name, _NAME),
        found.kind,
        _cut(describe_values(found), _VALUES),
        gaps,
        found.reason,
    )


def describe_values(found: FoundColumn) -> str:
    """Return the words of a column, or the range of its values."""
    figures = found.figures
    if found.kind in ("binary", "category"):
        words = found.columns[0].words
        more = f", … ({len(words):,})" if len(words) > _WORDS else ""
        return ", ".join(words[:_WORDS]) + more
    if isinstance(figures, NumberFigures) and figures.known:
        digits = 15 if figures.type == "int" else 6
        return f"{figures.low:.{digits}g} to {figures.high:.{digits}g}"
    if isinstance(figures, DateFigures) and figures.known:
        unit = "m" if figures.has_times else "D"
        low, high = (
            np.datetime64(end, "us").astype(f"M8[{unit}]") for end in (figures.low, figures.high)
        )
        return f"{low} to {high}"
    if isinstance(figures, TextFigures) and figures.words:
        return f"{figures.words[0]}, …"
    return ""


def _cut(text: str, length: int) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= length else f"{plain[: length - 1]}…"
