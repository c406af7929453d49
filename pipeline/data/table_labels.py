"""Read the labels of a table's rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.io.columns import unwrap_array

Array = NDArray[Any]


def as_labels(arrays: Sequence[pa.Array]) -> Array:
    """Return integers, or text, of all batches of a column of labels."""
    arrays = [unwrap_array(array) for array in arrays]
    if all(pa.types.is_integer(array.type) and not array.null_count for array in arrays):
        return np.concatenate([array.to_numpy().astype(np.int64) for array in arrays])
    values = (value for array in arrays for value in array.to_pylist())
    return np.array(["missing" if value is None else str(value) for value in values])
