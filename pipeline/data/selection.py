"""What to read of a source: which columns, rows or array, and how its CSV files are written."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is read; all but the last two are settings of `DataConfig`."""

    columns: Sequence[str] = ()
    """Empty for all but the label and what describes rows, see `serving.io.side_columns`."""
    label: str = ""
    array: str = ""
    """The array of an `.npz` file; empty for the usual names."""
    delimiter: str = ""
    """Between the fields of a CSV file; empty to find it."""
    drop_missing: bool = False
    """Whether rows that lack a value are left out; otherwise they are refused."""
    x_shape: Sequence[int] = ()
    x_dtype: str = ""
    """This and the shape are those of the model that the rows are for; empty if there is none."""

    @property
    def colours(self) -> bool | None:
        """Whether images are read in colour; None: if not all of them are gray."""
        return len(self.x_shape) == 3 if self.x_shape else None


EVERYTHING = Selection()
"""Nothing is chosen: all columns, or the usual array, of all rows."""
