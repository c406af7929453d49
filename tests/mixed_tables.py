"""A small mixed table with every kind of column, for tests; its columns depend on one latent."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import Dataset, Split, digest
from serving.schema import Column, Schema

COLOURS = ("blue", "green", "red", "white")
SCHEMA = Schema(
    columns=(
        Column(name="size", kind="real"),
        Column(name="colour", kind="category", type="text", words=COLOURS),
        Column(name="visits", kind="count", type="int"),
        Column(name="income", kind="positive"),
        Column(name="member", kind="binary", type="bool", words=("false", "true")),
        Column(name="weight", kind="real"),
    ),
    ignored={"key": "an id"},
)
Array = NDArray[Any]


def draw_rows(rows: int, seed: int = 0, gaps: float = 0.15) -> Array:
    """Draw rows (rows, 6) of float32 whose columns follow from one latent; NaN is a gap."""
    generator = np.random.default_rng(seed)
    z = generator.standard_normal(rows)
    noise = generator.standard_normal((rows, 6))
    x = np.stack(
        [
            3 * z + 0.3 * noise[:, 0] + 20,
            np.clip(np.floor(1.2 * z + 0.4 * noise[:, 1] + 2), 0, 3),
            generator.poisson(np.exp(0.8 * z + 1)),
            np.exp(1.5 * z + 0.4 * noise[:, 3] + 7),
            (z + 0.5 * noise[:, 4] > 0),
            -z + 0.5 * noise[:, 5],
        ],
        -1,
    ).astype(np.float32)
    x[generator.random(x.shape) < gaps] = np.nan
    return x


def make_dataset(rows: int = 900, seed: int = 0) -> Dataset:
    """Return a dataset of three splits."""
    parts = (draw_rows(count, seed + i) for i, count in enumerate((rows, rows // 4, rows // 4)))
    names = tuple(column.name for column in SCHEMA.columns)
    splits = [Split(x, digest(x)) for x in parts]
    return Dataset("table", *splits, columns=names, schema=SCHEMA)
