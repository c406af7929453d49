"""Data: from a name or a path to three fixed splits and their digests.

In: `mnist`, a folder in MNIST's IDX layout, or an `.npy` or `.npz` file. Out: a `Dataset`. Data
that cannot be used raises `DataRefused` and says why. Splits depend on the data alone, not on the
seed of a training, so that models of different seeds are compared on the same held-out rows.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import DataRefused
from serving.formats import read_array, read_npz

Array = NDArray[Any]

MNIST = Path(__file__).parent / "datasets" / "mnist"
_IDX_NAMES = {"train": "train-images", "test": "t10k-images"}


@dataclass(frozen=True, slots=True)
class Split:
    """Rows (rows, *x_shape) of uint8 or float32, and their SHA-256."""

    x: Array
    sha256: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows to learn from, to choose the best epoch on, and to report on; `valid` may be empty."""

    source: str
    train: Split
    valid: Split
    test: Split

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.train.x.shape[1:]

    def digests(self) -> dict[str, str]:
        """SHA-256 by split."""
        return {name: row["sha256"] for name, row in self.describe()["splits"].items()}

    def describe(self) -> dict[str, Any]:
        """Source, rows and digests, as the manifest keeps them."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {
            "source": self.source,
            "splits": {
                name: {"rows": len(split.x), "sha256": split.sha256}
                for name, split in splits.items()
            },
        }


def load_dataset(source: str, *, valid_fraction: float, test_fraction: float) -> Dataset:
    """Load and split the data at `source`.

    Where the source has a test set of its own, `test_fraction` is not used.
    """
    rest, test = _read_source(source)
    rest = _check_rows(source, rest)
    if test is None:
        rest, test = _split(source, rest, test_fraction)
    else:
        test = _check_rows(f"{source} (test)", test)
        if (test.dtype, test.shape[1:]) != (rest.dtype, rest.shape[1:]):
            raise DataRefused(
                f"{source}: test rows are {test.dtype} {test.shape[1:]}, "
                f"training rows {rest.dtype} {rest.shape[1:]}"
            )
    train, valid = _split(source, rest, valid_fraction)
    return Dataset(source, *(Split(x, digest(x)) for x in (train, valid, test)))


def digest(x: Array) -> str:
    """SHA-256 of dtype, shape and little-endian bytes."""
    canonical = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<"))
    sha = hashlib.sha256(f"{x.dtype.name}{x.shape}".encode())
    sha.update(canonical.view(np.uint8).data if x.size else b"")
    return sha.hexdigest()


def _read_source(source: str) -> tuple[Array, Array | None]:
    path = MNIST if source == "mnist" else Path(source).expanduser()
    if not path.exists():
        raise DataRefused(
            f"no data at {source!r}: give mnist, an IDX folder, a .npy or a .npz file"
        )
    if path.is_dir():
        return read_array(_idx_file(path, "train")), read_array(_idx_file(path, "test"))
    if path.suffix == ".npz" and {"x_train", "x_test"} <= (arrays := read_npz(path)).keys():
        return arrays["x_train"], arrays["x_test"]
    return read_array(path), None


def _idx_file(folder: Path, split: str) -> Path:
    name = f"{_IDX_NAMES[split]}-idx3-ubyte"
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataRefused(f"{folder} has no {name} or {name}.gz")


def _check_rows(source: str, x: Array) -> Array:
    """Rows of uint8 or finite float32, at least one of each size."""
    if x.dtype == np.float64:
        with np.errstate(over="ignore"):  # too large a value becomes inf, refused below
            x = x.astype(np.float32)
    if x.dtype not in (np.uint8, np.float32):
        raise DataRefused(f"{source} must be uint8, float32 or float64, got {x.dtype}")
    if x.ndim < 2 or x.size == 0:
        raise DataRefused(f"{source} must be rows of features, at least one of each; got {x.shape}")
    if x.dtype == np.float32:
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
        if bad.any():
            raise DataRefused(
                f"{source} must be finite: {int(bad.sum())} of {len(x)} rows are not, "
                f"the first is row {int(bad.argmax())}"
            )
    return x


def _split(source: str, x: Array, fraction: float) -> tuple[Array, Array]:
    """Cut a fixed random `fraction` of the rows off, at least one row where it is not 0."""
    if fraction == 0:
        return x, x[:0]
    count = max(1, round(len(x) * fraction))
    if count >= len(x):
        raise DataRefused(f"{source} has {len(x)} rows, too few to split")
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(x))
    return x[np.sort(order[:-count])], x[np.sort(order[-count:])]
