"""Read batches of numbers, and count what cannot be used.

In: record batches, in order. Out: their good rows. Raises `DataRefused` at the end, which counts
missing values by column and names the first row that cannot be used.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from pipeline.data.row_checks import Float32Check
from serving.console import say
from serving.errors import DataRefused
from serving.io.arrow_types import is_number, unwrap_type
from serving.io.column_choice import RowLayout
from serving.io.columns import COLOUR, NAN, NULL, REASONS, read_x, unwrap_array
from serving.io.image_files import NotGray, read_image
from serving.io.remote_paths import Place

Array = NDArray[Any]

_MAX_FLOAT = float(np.finfo(np.float32).max)
_SHOWN = 5
_NAME = 40


class NumberReader:
    """Reads columns of numbers, or one column of whole rows.

    Args:
        path: named in errors.
        names: the columns.
        layout: shape and dtype of a row.
        drop_missing: whether rows that lack a value are left out, and not refused.
        check: watches the values, and judges them at the end; None if they were judged before.
        advice: what else can be done about missing values, with a comma at its end.
    """

    def __init__(
        self,
        path: Place,
        names: Sequence[str],
        layout: RowLayout,
        drop_missing: bool,
        check: Float32Check | None,
        advice: str = "",
    ) -> None:
        self.layout, self._advice = layout, advice
        self._path, self._names, self._drop, self._check = path, names, drop_missing, check
        self._missing: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._seen = self._good = self._dropped = 0
        self._first = ""

    def read(self, batch: pa.RecordBatch) -> tuple[Array, Array]:
        """Return the good rows of a batch, and a code (rows,) for each row, 0 for a good one.

        Raises:
            NotGray: an image is in colour, and gray ones are read.
        """
        names, layout = self._names, self.layout
        watch = self._check.watch if self._check else lambda values: None
        good, codes = read_x(batch, names, layout, watch)
        if codes.any():
            self._count_bad(batch, codes)
        self._seen += len(codes)
        self._good += len(good)
        return good, codes

    def _count_bad(self, batch: pa.RecordBatch, codes: Array) -> None:
        if (codes == COLOUR).any():
            row = self._seen + int(np.argmax(codes == COLOUR))
            raise NotGray(f"{self._path}: {REASONS[COLOUR]}: row {row}")
        gaps = np.isin(codes, (NULL, NAN))
        if gaps.any():
            self._dropped += int(gaps.sum())
            self._missing.update(_count_missing(batch.filter(pa.array(gaps)), self._names))
        self._reasons.update(REASONS[code] for code in codes[(codes > 0) & ~gaps].tolist())
        if self._reasons and not self._first:
            place = int(np.flatnonzero((codes > 0) & ~gaps)[0])
            reason = _explain_row(batch.slice(place, 1), self._names, self.layout)
            self._first = f"row {self._seen + place}{reason}"

    def finish(self) -> None:
        """Judge all rows that were read.

        Raises:
            DataRefused: some cannot be used, or there are none.
        """
        path = self._path
        if self._missing:
            listed = _list_missing(self._missing)
            if not self._drop:
                raise DataRefused(
                    f"{path} has missing values, {listed}: {self._advice}fill them in, leave such "
                    "rows out by --drop-missing, or name other columns by --columns"
                )
            say(f"{path}: {self._dropped:,} rows with missing values are left out, {listed}")
        if self._check:
            self._check.finish()
        if self._reasons:
            counts = self._reasons.items()
            listed = ", ".join(f"{reason}: {count} rows" for reason, count in counts)
            raise DataRefused(f"{path} cannot be used, {listed}; the first is {self._first}")
        if not self._good:
            raise DataRefused(f"{path} must hold at least one row, it has none")


def _explain_row(row: pa.RecordBatch, names: Sequence[str], layout: RowLayout) -> str:
    """Say what is wrong with a row that has no gap, as far as one can tell."""
    value = unwrap_array(row.column(names[0]))[0].as_py()
    if isinstance(value, bytes):
        try:
            read_image(value, layout.shape)
        except DataRefused as err:
            return f": {err}"
    if len(names) > 1:
        for name in names:
            number = float(unwrap_array(row.column(name))[0].as_py())
            if not abs(number) <= _MAX_FLOAT:
                return f", where {name[:_NAME]!r} is {number:g}"
    return ""


def _count_missing(batch: pa.RecordBatch, names: Sequence[str]) -> dict[str, int]:
    """Count the values, null or NaN, that each column lacks; in a column of lists, the rows."""
    if not is_number(unwrap_type(batch.schema.field(names[0]).type)):
        return {names[0]: batch.num_rows}
    columns = (unwrap_array(batch.column(name)) for name in names)
    counts = (compute.sum(column.is_null(nan_is_null=True)).as_py() for column in columns)
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _list_missing(missing: Mapping[str, int]) -> str:
    shown = [f"{name[:40]}: {count} missing" for name, count in [*missing.items()][:_SHOWN]]
    more = f" and {len(missing) - _SHOWN} more columns" if len(missing) > _SHOWN else ""
    return ", ".join(shown) + more
