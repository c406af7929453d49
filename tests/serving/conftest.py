import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from serving.batch import job
from serving.bundle import MANIFEST, Bundle, manifest_digest, open_bundle
from serving.engine import Engine
from serving.source import Source
from tests.serving.batch.jobs import PART_ROWS, Array, read, run, table
from tests.serving.running import Running, serve

SEALED = Path(__file__).parent / "bundle"
MIXED = Path(__file__).parent / "mixed_bundle"
"""A model of a mixed table; tests/make_mixed_bundle.py made it."""
SCHEMA_1 = Path(__file__).parent / "bundle_of_schema_1"
"""An early one, without graphs of noise, a range of the data or scores of held-out rows."""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy of the bundle in this folder; tests/make_serving_bundle.py made it."""
    shutil.copytree(SEALED, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.fixture
def named(bundle: Bundle) -> Bundle:
    """The same model with a name for each value of a row, as one of a table has them."""
    path = bundle.path / MANIFEST
    content = json.loads(path.read_text())
    content["data"]["columns"] = ["model", "row", "z", *(f"pixel {n}" for n in range(27))]
    path.write_text(json.dumps({**content, "digest": manifest_digest(content)}))
    return open_bundle(bundle.path)


@pytest.fixture
def registered(bundle: Bundle) -> Source:
    """The same bundle, as version 7 of the registered model `vae`."""
    return Source(bundle, "vae", "7")


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(open_bundle(SEALED))


@pytest.fixture(scope="session")
def x() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2500, 6, 5), dtype=np.uint8)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Iterator[Running]:
    """A server of the bundle, shared by tests that leave it as it was."""
    with serve(tmp_path_factory.mktemp("server"), SEALED, "--drain", "2") as running:
        yield running


@pytest.fixture(scope="session")
def batch_data(tmp_path_factory: pytest.TempPathFactory, x: Array) -> Path:
    """One file of all rows, and a folder with them in a hundred."""
    folder = tmp_path_factory.mktemp("batch")
    parquet.write_table(table(x), folder / "x.parquet", row_group_size=1000)
    (folder / "many").mkdir()
    for index in range(100):
        part = table(x).slice(25 * index, 25)
        parquet.write_table(part, folder / "many" / f"{index:03d}.parquet")
    return folder


@pytest.fixture(scope="session")
def whole(batch_data: Path, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The output of a job that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "PART_ROWS", PART_ROWS)
        run(engine, batch_data / "x.parquet", output / "out")
    return read(output / "out")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "PART_ROWS", PART_ROWS)
