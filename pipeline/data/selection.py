"""What to read of a source: which columns, rows or array, and how its CSV files are written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from serving.io.image_files import NotGray
from serving.schema import Schema

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is read; the first ones are settings of `DataConfig`."""

    columns: Sequence[str] = ()
    """Empty for all but the label and what describes rows, see `serving.io.side_columns`."""
    label: str = ""
    array: str = ""
    """The array of an `.npz` file; empty for the usual names."""
    delimiter: str = ""
    """Between the fields of a CSV file; empty to find it."""
    drop_missing: bool = False
    """Whether rows that lack a value are left out; otherwise they have gaps, or are refused."""
    schema: str = ""
    """A file of `pipeline.data.schema_file`, which says what the columns of a table are."""
    likelihood: str = ""
    """`auto` or `mixed` to find what the columns of a table are; any other reads numbers alone."""
    table_schema: Schema | None = None
    """By which a table is read: that of the model, or of the training set."""
    x_shape: Sequence[int] = ()
    x_dtype: str = ""
    """This and the shape are those of the model that the rows are for, or of the training set that
    they stand beside; empty if there is none."""

    def read_images(self, read: Callable[[tuple[int, ...]], _Read], size: tuple[int, ...]) -> _Read:
        """Read images of a size by their shape: in gray, and again in colour if one of them is.

        Those for a model are read as it takes them.

        Raises:
            NotGray: the model takes gray images, and one is in colour.
        """
        if len(self.x_shape) != 3:
            try:
                return read(size)
            except NotGray:
                if self.x_shape:
                    raise
        return read((*size, 3))


EVERYTHING = Selection()
"""Nothing is chosen: all columns, or the usual array, of all rows."""
