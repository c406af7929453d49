"""What to read of a source: which columns, rows or array, and how its CSV files are written."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Settings of `DataConfig` that choose what is read; columns and label are those of a table."""

    columns: Sequence[str] = ()
    """Empty for all but the label and what describes rows, see `serving.io.side_columns`."""
    label: str = ""
    array: str = ""
    """The array of an `.npz` file; empty for the usual names."""
    delimiter: str = ""
    """Between the fields of a CSV file; empty to find it."""
    drop_missing: bool = False
    """Whether rows that lack a value are left out; otherwise they are refused."""


EVERYTHING = Selection()
"""Nothing is chosen: all columns, or the usual array, of all rows."""
