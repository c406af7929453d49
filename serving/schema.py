"""The columns of a table whose cells are numbers, words, dates or gaps, and how `x` holds them.

`x` (rows, columns) is float32, with a number for each cell: the value of a number less the column's
`origin`, the place of a word among the column's `words`, and NaN for a gap. A date has several
columns: its day, and parts of the calendar.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["real", "positive", "count", "binary", "category"]
"""What a column's values can be, which chooses its likelihood."""
Part = Literal["", "day", "weekday", "month", "hour"]
"""What a column holds of a date: empty if it is not of a date."""
CellType = Literal["float", "int", "bool", "text", "date", "time"]
"""The type of the values in a table, in which they are written back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of `x`."""

    name: str
    """That of the table's column; of a part of a date `NAME.weekday`, `NAME.month`, `NAME.hour`."""
    kind: Kind
    type: CellType = "float"
    source: str = ""
    """The column of the table, if it has another name."""
    part: Part = ""
    words: tuple[str, ...] = ()
    """The values of a binary or a category, by their codes from 0. One more code, the number of
    words, stands for all other values."""
    origin: float = 0.0
    """What is subtracted from a value, in float64, so that float32 holds the rest."""
    missing: float = 0.0
    """Share of gaps among the rows from which the schema was made."""

    @property
    def table_column(self) -> str:
        """The name of the table's column."""
        return self.source or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The columns of `x`, in order, and the columns of the table that are left out."""

    columns: tuple[Column, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    """The reason why a column is left out, by name."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the table's columns, each once, in order."""
        return tuple(dict.fromkeys(column.table_column for column in self.columns))

    def to_json(self) -> dict[str, Any]:
        """Return the schema in JSON's own types, without what has its default."""
        plain = Column(name="", kind="real")
        columns = [
            {key: value for key, value in asdict(column).items() if value != getattr(plain, key)}
            | {"kind": column.kind}
            for column in self.columns
        ]
        return {"columns": columns, "ignored": dict(self.ignored)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Schema":
        """Read what `to_json` wrote."""
        columns = tuple(
            Column(**{**column, "words": tuple(column.get("words", ()))})
            for column in content["columns"]
        )
        return cls(columns=columns, ignored=dict(content["ignored"]))
