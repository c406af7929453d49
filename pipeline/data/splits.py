"""The three splits of a data set: what a training, an evaluation and a manifest know of its rows.

Rows to validate and to test on are in memory. Rows to train on are in memory too, or they are
streamed: then a fixed sample of them stands for all where statistics are taken.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.plan import DataPlan, Resources
from pipeline.data.streamed_rows import StreamedRows
from serving.errors import DataRefused
from serving.schema import Schema
from serving.value_range import Range, find_range, max_byte_of

Array = NDArray[Any]

_MANY_ROWS = 1 << 27
"""Of more rows than these, no permutation is drawn to choose those that are held out."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows (rows, *x_shape) of uint8 or float32, and their SHA-256."""

    x: Array
    sha256: str
    labels: Array | None = None
    """Integers or strings (rows,), used only in figures; only a test split has them."""


@dataclass(frozen=True, slots=True)
class StreamedSplit:
    """Rows that are read anew in each epoch, their SHA-256, and some of them in memory."""

    x: StreamedRows
    sha256: str
    """The digest that `digest` gives for the same rows in memory."""
    sample: Array
    """Rows for scaling, output bias and calibration, chosen once and for all."""
    extremes: Array
    """Rows that show, beside the sample, what all rows hold: the least and the largest value, and a
    fraction, if there is one."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows to train on, to choose the best epoch on, and to report on; `valid` may be empty."""

    source: str
    train: Split | StreamedSplit
    valid: Split
    test: Split
    columns: tuple[str, ...] = field(default=(), kw_only=True)
    """Names of the features, if the source is a table with a column for each."""
    schema: Schema | None = field(default=None, kw_only=True)
    """The kinds of the columns, if they are not all complete numbers; gaps in `x` are NaN."""
    plan: DataPlan | None = field(default=None, kw_only=True)
    """Where the rows are during training, and why."""

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.train.x.shape[1:]

    @property
    def x_dtype(self) -> np.dtype[Any]:
        """The dtype of the values: uint8 or float32."""
        return self.train.x.dtype

    @property
    def train_rows(self) -> int:
        """The number of rows to train on."""
        return self.train.x.shape[0]

    @property
    def sample(self) -> Array:
        """The training rows from which statistics are taken: all of them, or a fixed sample."""
        return self.train.sample if isinstance(self.train, StreamedSplit) else self.train.x

    @property
    def rows(self) -> tuple[Array, ...]:
        """Rows of all splits: all of them, or what shows which values all of them have."""
        if not isinstance(self.train, StreamedSplit):
            return self.train.x, self.valid.x, self.test.x
        return self.train.sample, self.train.extremes, self.valid.x, self.test.x

    @property
    def value_range(self) -> Range:
        """The smallest and the largest value of all splits."""
        return find_range(*self.rows)

    @property
    def max_byte(self) -> int:
        """The value of a full byte: 255, unless the bytes are bits or levels, see `max_byte_of`."""
        return max_byte_of(self.value_range[1])

    @property
    def streamed(self) -> dict[str, Any] | None:
        """What is said of rows that are streamed; None for rows in memory."""
        if not isinstance(self.train, StreamedSplit):
            return None
        return {"statistics_rows": len(self.train.sample)}

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each split."""
        return {name: split.sha256 for name, split in self._splits().items()}

    def describe(self) -> dict[str, Any]:
        """Return source, range, numbers of rows and digests, as the manifest keeps them.

        If the rows to train on are streamed, `streamed` says from which of them statistics are.
        """
        return {
            "source": self.source,
            **({"columns": list(self.columns)} if self.columns else {}),
            **({"schema": self.schema.to_json()} if self.schema else {}),
            **({"streamed": self.streamed} if self.streamed else {}),
            "range": list(self.value_range),
            "splits": {
                name: {"rows": split.x.shape[0], "sha256": split.sha256}
                for name, split in self._splits().items()
            },
        }

    def _splits(self) -> dict[str, Split | StreamedSplit]:
        return {"train": self.train, "valid": self.valid, "test": self.test}


def plan_in_memory(dataset: Dataset, resources: Resources, needed: int) -> Dataset:
    """Add the plan to a data set that was loaded into memory."""
    plan = DataPlan(
        rows=dataset.train_rows,
        row_bytes=int(np.prod(dataset.x_shape)) * dataset.x_dtype.itemsize,
        valid_rows=len(dataset.valid.x),
        test_rows=len(dataset.test.x),
        memory=resources.memory,
        needed=needed,
        streamed=False,
        statistics_rows=dataset.train_rows,
    )
    return replace(dataset, plan=plan)


def digest(x: Array) -> str:
    """Return the SHA-256 of dtype, shape and little-endian bytes."""
    running = RunningDigest(x.dtype, x.shape)
    running.add(x)
    return running.hexdigest()


class RunningDigest:
    """The digest of an array of known dtype and shape, whose rows come in parts."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._sha = hashlib.sha256(f"{dtype.name}{shape}".encode())

    def add(self, rows: Array) -> None:
        """Add the next rows."""
        canonical = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
        self._sha.update(canonical.view(np.uint8).data if rows.size else b"")

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was added."""
        return self._sha.hexdigest()


def choose_held_out(source: str, rows: int, fraction: float, most: int | None = None) -> Array:
    """Return the sorted indices of the rows that are held out, a share of them but at most `most`.

    They depend on the number of rows alone, and not on the seed of a training.
    """
    if fraction == 0:
        return np.arange(0)
    count = max(1, round(rows * fraction))
    if count >= rows:
        raise DataRefused(f"{source} has {rows} rows, too few to split")
    count = count if most is None else min(count, max(1, most))
    generator = np.random.Generator(np.random.Philox(key=0))
    if rows > _MANY_ROWS:
        return np.sort(generator.choice(rows, count, replace=False, shuffle=False))
    order = np.arange(rows, dtype=np.uint32)  # half the memory of `permutation`, and equal to it
    generator.shuffle(order)
    return np.sort(order[-count:]).astype(np.int64)
