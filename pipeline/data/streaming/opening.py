"""Open the rows to train on, by the way that suits their format.

An `.npy` or IDX file is mapped where it lies.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from pipeline.data.plan import Resources
from pipeline.data.selection import Selection
from pipeline.data.streaming.chunks import RowSource
from pipeline.data.streaming.mapped import map_array
from pipeline.data.streaming.parts import Parts
from serving.errors import DataRefused

_Result = TypeVar("_Result")


def run_on_rows(
    parts: Parts,
    name: str,
    selection: Selection,
    resources: Resources,
    run: Callable[[RowSource], _Result],
) -> _Result:
    """Open the rows, and return what `run` makes of them.

    Images are opened as gray ones first, and again in colour if one of them is.
    """
    if parts.kind == "array" and not parts.array:
        mapped = map_array(parts.path, name, selection)
        if mapped is not None:
            return run(replace(mapped, labels=parts.labels))
    raise DataRefused(f"{name} does not fit in memory: use more --memory")
