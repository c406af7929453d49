"""Rows of a mixed table as people have them: text, counts, dates, flags, gaps and unseen words."""

import datetime

import numpy as np
import pyarrow as pa

COLOURS = ("blue", "green", "red", "white")
EPOCH = datetime.date(2024, 1, 1)
NAMES = ("size", "colour", "visits", "income", "member", "opened", "grade")


def draw_table(rows: int, seed: int) -> pa.Table:
    """Draw rows whose columns follow from one latent; a tenth of the cells is null."""
    generator = np.random.default_rng(seed)
    z = generator.standard_normal(rows)
    noise = generator.standard_normal((rows, 6))

    def column(values: object, kind: pa.DataType, gaps: float = 0.1) -> pa.Array:
        return pa.array(values, kind, mask=generator.random(rows) < gaps)

    codes = np.clip(np.floor(1.2 * z + 0.4 * noise[:, 0] + 2), 0, 3).astype(int)
    days = np.clip(300 + 90 * z + 30 * noise[:, 1], 0, 700).astype(int)
    return pa.table(
        {
            "key": pa.array([f"k{seed}-{row}" for row in range(rows)]),
            "size": column(3 * z + 0.3 * noise[:, 2] + 20, pa.float64(), 0.0),
            "colour": column(np.array(COLOURS, object)[codes], pa.string()),
            "visits": column(generator.poisson(np.exp(0.8 * z + 1)), pa.int64()),
            "income": column(np.exp(1.5 * z + 0.4 * noise[:, 3] + 7), pa.float64()),
            "member": column(z + 0.5 * noise[:, 4] > 0, pa.bool_()),
            "opened": column([EPOCH + datetime.timedelta(int(day)) for day in days], pa.date32()),
            "grade": column(1 + (z + noise[:, 5] > 0) + (z > 1), pa.int64(), 0.0),
        }
    )


def with_oddities(table: pa.Table) -> pa.Table:
    """Return the rows with a word that no training had, and a gap where it had none."""
    colours, sizes = table.column("colour").to_pylist(), table.column("size").to_pylist()
    colours[1], sizes[2] = "mauve", None
    odd = table.set_column(table.schema.get_field_index("colour"), "colour", pa.array(colours))
    return odd.set_column(odd.schema.get_field_index("size"), "size", pa.array(sizes, pa.float64()))
