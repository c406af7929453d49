"""Check the rows of a source, and of its own validation and test sets, before they are split."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.labelled_rows import LabelledRows
from pipeline.data.row_checks import check_encoded, check_rows
from pipeline.data.selection import Selection
from serving.errors import DataRefused
from serving.value_range import MAX_BYTE

Array = NDArray[Any]


def check_like(
    train: LabelledRows, source: str, name: str, part: LabelledRows | None, selection: Selection
) -> LabelledRows | None:
    """Check the rows of a set of the source's own, if it has it: they must be like `train`."""
    if part is None:
        return None
    part = check_part(f"{source} ({name})", part, selection)
    if (part.x.dtype, part.x.shape[1:]) != (train.x.dtype, train.x.shape[1:]):
        raise DataRefused(
            f"{source}: {name} rows are {part.x.dtype} {part.x.shape[1:]}, "
            f"training rows {train.x.dtype} {train.x.shape[1:]}"
        )
    return part


def check_part(source: str, part: LabelledRows, selection: Selection) -> LabelledRows:
    """Return rows that a model can learn from; refuse others."""
    if part.schema is not None:
        return part  # each cell was checked when it was read
    if selection.table_schema:
        return replace(part, x=check_encoded(source, part.x, selection.table_schema))
    x, kept = check_rows(source, part.x, part.columns, selection.drop_missing)
    x = _fit_model(x, selection)
    if part.labels is None or kept.all():
        return replace(part, x=x)
    return replace(part, x=x, labels=part.labels[kept])


def _fit_model(x: Array, selection: Selection) -> Array:
    """Return rows in the model's shape and dtype, if there is a model and that changes no value."""
    if selection.x_shape and x.ndim == 2 and x.shape[1] == math.prod(selection.x_shape):
        x = x.reshape(len(x), *selection.x_shape)
    if selection.x_dtype == "float32":
        return x.astype(np.float32, copy=False)
    if selection.x_dtype == "uint8" and x.dtype != np.uint8:
        whole = x.size and x.min() >= 0 and x.max() <= MAX_BYTE and (x == np.rint(x)).all()
        return x.astype(np.uint8) if whole else x
    return x
