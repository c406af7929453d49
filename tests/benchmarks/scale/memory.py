"""Train on eight times the memory that a cgroup allows: the kernel kills what needs more.

The limit is that of all of the training: Python, torch, MLflow and rows. `--memory` is the default,
half of it, but for pictures, whose decoding would take long: they are eight times `--memory`.
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

LIMIT_MIB = 1024
TIMES = 8
WIDE_ROWS, WIDE_COLUMNS = 10_000_000, 64
PICTURES_MIB = 128
_WRITTEN = 100_000
_DIGIT, _PICTURE = (784,), (128, 128, 3)


@dataclass(frozen=True, slots=True)
class Case:
    """Data of one kind, and how it is trained on."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: int
    options: tuple[str, ...] = ("--hidden-dims", "64", "--latent-dim", "8", "--batch-size", "1000")

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
        step = max(1, min(rows, _WRITTEN, (64 * MIB) // (4 * width)))
        x = rng.normal(size=(step, 8)).astype(np.float32) @ rng.normal(size=(8, width))
        x += rng.normal(size=x.shape)
        if self.dtype == "uint8":
            x = np.clip(128 + 30 * x, 0, 255)
        x = x.astype(self.dtype).reshape(step, *self.shape)
        for start in range(0, rows, step):
            yield np.roll(x, int(rng.integers(width)), axis=1)[: rows - start]

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
    rows = LIMIT_MIB * MIB * TIMES // int(np.prod(_DIGIT))
    yield Case("Parquet", _DIGIT, "uint8", rows)
    yield Case(".npy", _DIGIT, "uint8", rows)
    yield Case("ten million rows of Parquet", (WIDE_COLUMNS,), "float32", WIDE_ROWS)
    small = ("--hidden-dims", "16", "--latent-dim", "8", "--batch-size", "200")
    rest = ("--learning-rate", "1e-5", "--memory", f"{PICTURES_MIB}MiB")
    pictures = PICTURES_MIB * MIB * TIMES // int(np.prod(_PICTURE))
    yield Case("folder of PNG", _PICTURE, "uint8", pictures, (*small, *rest))


def measure() -> Iterator[str]:
    """Yield the memory of each training, which ends only if it stays within the limit."""
    for case in cases():
        folder = CACHE / "scale"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            ended = _train(case, case.write(folder, case.rows), folder)
        finally:
            shutil.rmtree(folder)
        verdict = "ended" if ended.status == 0 else f"FAILED, {ended.status}: {ended.stderr[-300:]}"
        yield (
            f"scale, memory: {case.name}: {case.rows:,} rows, {case.mib:,.0f} MiB decoded, one "
            f"epoch in a cgroup of {LIMIT_MIB} MiB: took {ended.own_mib:.0f} MiB and pages of "
            f"files, {ended.seconds:.0f} s: {verdict}"
        )


def _train(case: Case, data: Path, folder: Path) -> Ended:
    command = [
        *("env", "-C", os.getcwd(), f"MLFLOW_TRACKING_URI=sqlite:///{folder}/mlflow.db"),
        *(sys.executable, "-m", "pipeline.cli", "train", "--data", str(data), "--epochs", "1"),
        *("--cache", str(folder / "cache"), "--nll-samples", "1", "--threads", "1", *case.options),
    ]
    return run_limited(command, LIMIT_MIB, folder)
