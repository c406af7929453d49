"""The columns of results: those of a graph's outputs, and what is found from the scores of a row.

In: a bundle, an operation, and a choice of what is wanted of scores. Out: Arrow fields, and their
columns for rows and the outputs of a graph. Raises `UsageRefused` if the model does not have what
is wanted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.combined_score import CombinedScore
from serving.early_combined_score import EarlyCombinedScore
from serving.errors import UsageRefused
from serving.operations import By, Tensor
from serving.p_values import PValues, check_by, choose_score, read_held_out_scores

Array = NDArray[Any]

TEXT = pa.dictionary(pa.int32(), pa.string())
P_VALUE = "p_value"
_COMPUTED = ("column_max", "combined")
"""Scores that are no outputs of a graph."""
EARLY = "this version carries no scores of held-out rows: train and export it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreChoice:
    """What is wanted of the scores of a row."""

    by: str = ""
    """The score that p-values are of; if empty, the one that finds most."""
    explain: int = 0
    """How many columns are named, of those that fit the rest of their row least. If a row has fewer
    cells, the last names are null."""
    per_column: bool = False
    """Whether the scores of each column are written, as lists."""


class ResultColumns:
    """What a row of results has between its ids and what made it.

    Args:
        bundle: the model.
        operation: its operation.
        num_samples: draws per row; p-values need as many as the held-out rows have.
        choice: what is wanted of scores.

    Raises:
        UsageRefused: the model or the operation does not have what is wanted.
    """

    def __init__(
        self, bundle: Bundle, operation: str, num_samples: int, choice: ScoreChoice
    ) -> None:
        self.choice = choice
        self.by: By | None = None
        self.p_values: PValues | None = None
        self._combined: CombinedScore | EarlyCombinedScore | None = None
        """Makes the score that rows are compared by, if it is that one."""
        self.without_p_values = ""
        """Why there are none."""
        schema = bundle.manifest.schema
        self.names = [column.name for column in schema.columns] if schema else []
        self._outputs = list(bundle.operations[operation].outputs)
        if operation == "score":
            self._choose(bundle, num_samples)
        elif choice != ScoreChoice():
            raise UsageRefused(
                f"--by, --explain and --per-column are about scores, --operation is {operation!r}"
            )
        self.fields = self._list_fields()
        """The fields of the columns, in order."""

    def make(
        self, x: Array, outputs: Mapping[str, Array], lift: Array | None = None
    ) -> list[pa.Array]:
        """Return the columns for rows `x` and the outputs of the operation for them.

        An explanation follows the `lift` (rows, columns) of cells that were hidden in turn.
        """
        found = [to_arrow(outputs[item.name], arrow_type(item)) for item in self._outputs]
        if self._combined is not None:
            outputs = {**outputs, "combined": self._combined(outputs, x)}
        if self.by in _COMPUTED:
            found.append(pa.array(choose_score(self.by, outputs)))
        if self.p_values is not None and self.by is not None:
            found.append(pa.array(self.p_values(choose_score(self.by, outputs))))
        if lift is not None:
            found += self._explain(x, lift)
        return found

    def describe(self) -> dict[str, Any]:
        """Return what the columns depend on beside the operation, in the types of JSON."""
        if self.p_values is None and self.choice == ScoreChoice():
            return {}
        return {**asdict(self.choice), "by": self.by}

    def _choose(self, bundle: Bundle, num_samples: int) -> None:
        if (self.choice.explain or self.choice.per_column) and not self.names:
            raise UsageRefused(
                "--explain and --per-column need a model of a table of mixed columns; this one "
                "has one score for a whole row"
            )
        if not self.choice.per_column:
            self._outputs = [tensor for tensor in self._outputs if not tensor.shape[1:]]
        held_out = read_held_out_scores(bundle)
        if held_out is None:
            self.without_p_values = EARLY
        elif held_out.num_samples != num_samples:
            self.without_p_values = (
                f"the held-out rows were scored with --num-samples {held_out.num_samples}, "
                f"these with {num_samples}"
            )
            held_out = None
        combined = held_out.combined if held_out else None
        self.by = check_by(self.choice.by, mixed=bool(self.names), combined=combined is not None)
        if self.by == "combined":
            if combined is None:
                reason = self.without_p_values or EARLY
                raise UsageRefused(f"--by combined compares with held-out rows: {reason}")
            self._combined = combined
        if held_out is not None:
            self.p_values = PValues(choose_score(self.by, held_out.scores))

    def _list_fields(self) -> list[pa.Field]:
        fields = [pa.field(tensor.name, arrow_type(tensor)) for tensor in self._outputs]
        if self.by in _COMPUTED:
            fields.append(pa.field(self.by, pa.float32()))
        if self.p_values is not None:
            fields.append(pa.field(P_VALUE, pa.float64()))
        for place in range(1, self.choice.explain + 1):
            fields.append(pa.field(f"column_{place}", TEXT))
            fields.append(pa.field(f"nats_{place}", pa.float32()))
        return fields

    def _explain(self, x: Array, column_lift: Array) -> list[pa.Array]:
        order = order_columns(x, column_lift)
        gaps = np.isnan(np.take_along_axis(x, order, 1))
        nats = np.take_along_axis(column_lift, order, 1)
        found = []
        for place in range(self.choice.explain):
            if place >= len(self.names):
                found += [pa.nulls(len(x), TEXT), pa.nulls(len(x), pa.float32())]
                continue
            codes = pa.array(order[:, place].astype(np.int32), mask=gaps[:, place])
            found.append(name_codes(codes, self.names))
            found.append(pa.array(nats[:, place], mask=gaps[:, place]))
        return found


def order_columns(x: Array, column_lift: Array) -> NDArray[np.int64]:
    """Return the columns of each row by their lift, (rows, columns); gaps come last."""
    lift = np.where(np.isnan(x), np.inf, column_lift)
    return np.argsort(lift, axis=1, kind="stable")


def name_codes(codes: pa.Array, names: Sequence[str]) -> pa.DictionaryArray:
    """Return a column of names, which takes four bytes per row."""
    return pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string()))


def arrow_type(tensor: Tensor) -> pa.DataType:
    """Return the Arrow type of a row of a tensor: a number, or a list of fixed length."""
    kind = pa.from_numpy_dtype(np.dtype(tensor.dtype))
    sizes = [axis for axis in tensor.shape[1:] if isinstance(axis, int)]
    return pa.list_(kind, math.prod(sizes)) if sizes else kind


def to_arrow(values: Array, kind: pa.DataType) -> pa.Array:
    """Return values (rows, …) as a column of `arrow_type`, without a copy if contiguous."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if not pa.types.is_fixed_size_list(kind):
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)
