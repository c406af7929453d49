"""Train on eight times the rows that memory may hold, in a cgroup that allows no more.

What the process takes for itself is measured first, with rows of the same shape that are few; the
limit is this and `--memory`. A training that needs more is killed by the kernel.
"""

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from tests.benchmarks.cache import CACHE
from tests.benchmarks.scale.limited import MIB, Ended, run_limited

ALLOWED_MIB = 128
TIMES = 8
WIDE_ROWS, WIDE_COLUMNS, WIDE_MIB = 10_000_000, 64, 320
FEW_ROWS = 2_000
_WRITTEN = 100_000
_DIGIT, _PICTURE = (784,), (128, 128, 3)


@dataclass(frozen=True, slots=True)
class Case:
    """Data of one kind, and how it is trained on."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: int
    allowed_mib: int
    options: tuple[str, ...] = ("--hidden-dims", "64", "--latent-dim", "8", "--batch-size", "500")

    @property
    def mib(self) -> float:
        """Size of the rows as the model takes them."""
        return self.rows * np.dtype(self.dtype).itemsize * float(np.prod(self.shape)) / MIB

    def write(self, folder: Path, rows: int) -> Path:
        """Write rows of waves and noise, and return what `--data` names."""
        if self.name == ".npy":
            return self._write_array(folder, rows)
        if self.name == "folder of PNG":
            return self._write_pictures(folder, rows)
        return self._write_parquet(folder, rows)

    def _parts(self, rows: int) -> Iterator[np.ndarray]:
        """Make rows that have something to learn, a part at a time."""
        rng = np.random.default_rng(0)
        width = int(np.prod(self.shape))
        basis = rng.normal(size=(8, width)).astype(np.float32)
        step = max(1, min(_WRITTEN, (64 * MIB) // (4 * width)))
        for start in range(0, rows, step):
            count = min(step, rows - start)
            x = rng.normal(size=(count, 8)).astype(np.float32) @ basis
            x += rng.normal(size=x.shape).astype(np.float32)
            if self.dtype == "uint8":
                x = np.clip(128 + 30 * x, 0, 255)
            yield x.astype(self.dtype).reshape(count, *self.shape)

    def _write_array(self, folder: Path, rows: int) -> Path:
        path = folder / "x.npy"
        file = np.lib.format.open_memmap(path, "w+", self.dtype, (rows, *self.shape))
        start = 0
        for part in self._parts(rows):
            file[start : start + len(part)] = part
            start += len(part)
        return path

    def _write_pictures(self, folder: Path, rows: int) -> Path:
        places = (folder / "x" / f"{number:06}.png" for number in itertools.count())
        (folder / "x").mkdir()
        for part in self._parts(rows):
            for picture in part:
                Image.fromarray(picture).save(next(places), compress_level=1)
        return folder / "x"

    def _write_parquet(self, folder: Path, rows: int) -> Path:
        (folder / "x").mkdir()
        for number, part in enumerate(self._parts(rows)):
            if len(self.shape) == 1 and self.dtype == "float32":
                columns = {f"c{place:02}": part[:, place] for place in range(self.shape[0])}
                table = pa.table(columns)
            else:
                values = pa.array(part.reshape(-1))
                table = pa.table({"x": pa.FixedSizeListArray.from_arrays(values, part[0].size)})
            parquet.write_table(table, folder / "x" / f"{number:04}.parquet", row_group_size=20_000)
        return folder / "x"


def cases() -> Iterator[Case]:
    """Yield what is trained on."""
    rows = ALLOWED_MIB * MIB * TIMES // int(np.prod(_DIGIT))
    yield Case("Parquet", _DIGIT, "uint8", rows, ALLOWED_MIB)
    yield Case(".npy", _DIGIT, "uint8", rows, ALLOWED_MIB)
    pictures = ALLOWED_MIB * MIB * TIMES // int(np.prod(_PICTURE))
    small = ("--hidden-dims", "16", "--latent-dim", "8", "--batch-size", "100")
    pictured = (*small, "--learning-rate", "1e-5")
    yield Case("folder of PNG", _PICTURE, "uint8", pictures, ALLOWED_MIB, pictured)
    wide = ("--hidden-dims", "64", "--latent-dim", "8", "--batch-size", "1000")
    yield Case("ten million rows", (WIDE_COLUMNS,), "float32", WIDE_ROWS, WIDE_MIB, wide)


def measure() -> Iterator[str]:
    """Yield the memory of each training, which ends only if it stays within its limit."""
    for case in cases():
        folder = CACHE / "scale"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield _measure(case, folder)
        finally:
            shutil.rmtree(folder)


def _measure(case: Case, folder: Path) -> str:
    few, many = (folder / name for name in ("few", "many"))
    few.mkdir()
    many.mkdir()
    alone = _train(case, case.write(few, FEW_ROWS), few, None)
    limit = alone.own_mib + case.allowed_mib
    ended = _train(case, case.write(many, case.rows), many, limit)
    verdict = "ended" if ended.status == 0 else f"FAILED with {ended.status}: {ended.stderr[-300:]}"
    return (
        f"scale, memory: {case.name}: {case.rows:,} rows of {case.mib:,.0f} MiB, allowed "
        f"{case.allowed_mib} MiB and the {alone.own_mib:.0f} of the process: took "
        f"{ended.own_mib:.0f} of {limit:.0f} MiB, {ended.seconds:.0f} s, {verdict}"
    )


def _train(case: Case, data: Path, folder: Path, limit_mib: float | None) -> Ended:
    command = [
        *(sys.executable, "-m", "pipeline.cli", "train", "--data", str(data), "--epochs", "1"),
        *("--memory", f"{case.allowed_mib}MB", "--cache", str(folder / "cache")),
        *("--nll-samples", "1", "--threads", "1", *case.options),
    ]
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    arguments = [f"{name}={value}" for name, value in environment.items()]
    ended = run_limited(["env", "-C", os.getcwd(), *arguments, *command], limit_mib, folder)
    if limit_mib is None and ended.status != 0:
        raise ValueError(f"{case.name}: {ended.stderr}")
    return ended
