"""Rows as a source holds them, with the labels and the sets that it has."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from serving.schema import Schema

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows (rows, *x_shape) as a source holds them, and their labels (rows,) if it has any."""

    x: Array
    labels: Array | None = None
    columns: tuple[str, ...] = ()
    """Names of the features, if the source is a table with a column for each."""
    schema: Schema | None = None
    """By which the table was read, if its cells are of several kinds."""


class SourceSplits(NamedTuple):
    """Rows to train on, and those of the source's own test and validation sets, if it has them."""

    train: LabelledRows
    test: LabelledRows | None = None
    valid: LabelledRows | None = None
