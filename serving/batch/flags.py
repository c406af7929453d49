"""Flag the rows of a job at a false discovery rate, once all of its parts are there.

In: the folder of a job whose parts hold p-values. Out: the same parts with a column `flagged`, and
what was flagged. p-values take few values, so their counts hold the distribution of any number of
rows; the threshold follows from them. Each part is replaced as a whole and keeps its p-values, so
that a job that is interrupted here finds the same threshold and goes on.
"""

import pyarrow as pa
from pyarrow import compute

from serving.batch.output import Output
from serving.batch.result_columns import P_VALUE
from serving.errors import UsageRefused
from serving.p_values import FlagCounter, Flags

FLAGGED = "flagged"
_KEY = "vae.threshold"


def flag_rows(
    output: Output, parts: int, schema: pa.Schema, held_out_rows: int, fdr: float
) -> Flags:
    """Write `flagged` into all parts, whose rows have `schema`.

    Raises:
        VaeError: a part cannot be written.
    """
    counter = FlagCounter(held_out_rows)
    for index in range(parts):
        for group in output.read_groups(index, [P_VALUE]):
            counter.add(group[P_VALUE].to_numpy())
    flags = counter.flag(fdr)
    threshold = 0.0 if flags.threshold is None else flags.threshold
    said = {_KEY: repr(threshold)}
    flagged_schema = add_flagged(schema)
    for index in range(parts):
        if not output.says(index, said):
            groups = output.read_groups(index, schema.names)
            flagged = (_flag(group, threshold, flagged_schema) for group in groups)
            output.rewrite(index, flagged_schema, flagged, said)
    return flags


def add_flagged(schema: pa.Schema) -> pa.Schema:
    """Return the schema with `flagged` after the p-value.

    Raises:
        UsageRefused: an id column has that name.
    """
    if FLAGGED in schema.names:
        raise UsageRefused(f"--fdr writes a column {FLAGGED!r}: an id cannot have this name")
    return schema.insert(schema.get_field_index(P_VALUE) + 1, pa.field(FLAGGED, pa.bool_()))


def _flag(group: pa.Table, threshold: float, schema: pa.Schema) -> pa.Table:
    flagged = compute.less_equal(group[P_VALUE], threshold)
    columns = {**dict(zip(group.column_names, group.columns, strict=True)), FLAGGED: flagged}
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
