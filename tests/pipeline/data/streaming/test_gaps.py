"""Gaps of a table that the sample does not show, which decides whether the table needs a schema."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.data.dataset import Dataset, load_dataset
from pipeline.data.plan import Resources
from pipeline.data.streaming import opening
from pipeline.data.streaming.loading import load_streamed
from serving.errors import DataRefused
from tests.pipeline.data.streaming.sources import write_arrow

ROWS = 2000
SETTINGS: dict[str, Any] = {"valid_fraction": 0.1, "test_fraction": 0.1}


@pytest.fixture(autouse=True)
def few_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 0 and 1 of each 62 are."""
    monkeypatch.setattr(opening, "_SAMPLE_ROWS", 64)


def draw(lack: float | None) -> pa.Table:
    x = np.random.default_rng(0).normal(size=(ROWS, 3))
    columns: dict[str, Any] = {name: x[:, index].tolist() for index, name in enumerate("abc")}
    columns["b"][1234] = lack
    return pa.table(columns)


def stream(path: Path, likelihood: Literal["auto", "mixed", "normal"], **more: Any) -> Dataset:
    resources = Resources(memory=1, cache=path.parent / "cache")
    return load_streamed(str(path), resources, likelihood=likelihood, **SETTINGS, **more)


def test_footers_tell_the_gaps_that_a_sample_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(draw(None), path, row_group_size=100)
    streamed = stream(path, "auto")
    memory = load_dataset(str(path), likelihood="auto", **SETTINGS)
    assert streamed.schema is not None
    assert memory.schema is not None
    kinds = [(column.kind, column.missing > 0) for column in streamed.schema.columns]
    assert kinds == [(column.kind, column.missing > 0) for column in memory.schema.columns]
    assert kinds == [("real", False), ("real", True), ("real", False)]
    assert streamed.digests() == memory.digests()
    assert stream(path, "auto", drop_missing=True).schema is None


@pytest.mark.parametrize("kind", ["nan", "arrow", "without statistics"])
def test_other_gaps_are_refused_with_what_takes_them(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.parquet"
    if kind == "arrow":
        path = write_arrow(draw(None), tmp_path)
    else:
        table = draw(np.nan if kind == "nan" else None)
        parquet.write_table(table, path, write_statistics=kind == "nan")
    with pytest.raises(DataRefused, match=r"b: 1 missing: learn from them by --likelihood mixed, "):
        stream(path, "auto")
    with pytest.raises(DataRefused, match=r"b: 1 missing: fill them in, leave such rows out by"):
        stream(path, "normal")
    assert stream(path, "mixed").schema is not None
