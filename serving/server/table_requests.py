"""The table of a model with a schema, as requests and answers have it: a tensor a column.

In: columns that a transport has read. Out: `x`, and columns made of the outputs of a graph. Rows
that cannot be used raise `DataRefused` with the column, the row and what is allowed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.errors import DataRefused
from serving.frames import FrameRefused, encode_frame
from serving.protocol.column_tensors import (
    BY_COLUMNS,
    CONTENT_TYPE,
    datatype_of_column,
    wire_column,
)
from serving.protocol.messages import Array, InferRequest, InferResponse, Parameter
from serving.schema import Column, Schema
from serving.table_cells import TableCells, TableEncoder, decode_table, list_counts

ROWS_OF_X = ("x_loc", "x_filled", "x")
"""Outputs that hold rows of the table: of `reconstruct`, of `impute` and of `draw`."""


class RequestTable:
    """Reads and writes the columns of one schema; threads may share it."""

    def __init__(self, schema: Schema) -> None:
        self.encoder = TableEncoder(schema)
        self.schema = schema
        self.names = frozenset((*schema.sources, *schema.ignored))
        """The names of all columns that a request may have; those left out are not read."""

    def read(self, columns: Mapping[str, Array]) -> TableCells:
        """Encode columns (rows,).

        Raises:
            DataRefused: they do not fit the schema.
        """
        try:
            return encode_frame(self.encoder, columns)
        except FrameRefused as err:
            raise DataRefused(str(err)) from err

    def answer(
        self, request: InferRequest, response: InferResponse, cells: TableCells | None
    ) -> InferResponse:
        """Add what the schema does not know, and give rows by columns if the request has them.

        A request that names its outputs gets these; one marked with `pd` has columns, too.
        """
        parameters: dict[str, Parameter] = {}
        if cells is not None:
            for name, counts in (("unseen_words", cells.unseen), ("new_gaps", cells.new_gaps)):
                if counts:
                    parameters[name] = list_counts(counts)
        is_marked = request.parameters.get(CONTENT_TYPE) == BY_COLUMNS
        outputs = response.outputs
        found = [name for name in ROWS_OF_X if name in outputs]
        if (cells is not None or is_marked) and not request.outputs and found:
            outputs = self.write(outputs[found[0]])
            parameters[CONTENT_TYPE] = BY_COLUMNS
        return response._replace(outputs=outputs, parameters=parameters)

    def write(self, x: Array) -> dict[str, Array]:
        """Return the columns of `x` (rows, columns of x), as an answer has them."""
        table = decode_table(self.schema, x)
        for name, values in table.items():
            if values.dtype.kind == "M":  # to the day or the second, as they are decoded
                table[name] = values.astype(str).astype(object)
                table[name][np.isnat(values)] = None
        return {name: wire_column(values) for name, values in table.items()}

    def metadata(self) -> dict[str, Any]:
        """Describe the table: its columns, with the datatypes of an answer, and those of `x`."""
        kinds: dict[str, dict[str, Any]] = {}
        for column in self.schema.columns:
            kinds.setdefault(column.table_column, _describe(column))
        empty = self.write(np.empty((0, len(self.schema.columns)), np.float32))
        columns = [
            {"name": name, "datatype": datatype_of_column(values), **kinds[name]}
            for name, values in empty.items()
        ]
        return {"columns": columns, "x_columns": [column.name for column in self.schema.columns]}

    def example(self, x: Array) -> dict[str, Any]:
        """Return a request by columns of the rows `x`, in JSON."""
        columns = self.write(x)
        inputs = [
            {
                "name": name,
                "datatype": datatype_of_column(values),
                "shape": [len(values), 1],
                "data": [None if value != value else value for value in values.tolist()],
            }
            for name, values in columns.items()
        ]
        return {"parameters": {CONTENT_TYPE: BY_COLUMNS, "seed": 7}, "inputs": inputs}


def _describe(column: Column) -> dict[str, Any]:
    """Describe a column of the table by one of those that `x` has of it."""
    described: dict[str, Any] = {"kind": "date" if column.part else column.kind}
    described["type"] = column.type
    if column.words and not column.part:
        described["words"] = column.words
    return described
