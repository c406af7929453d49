import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Bundle, open_bundle
from serving.engine import Engine
from tests.serving.running import Running, serve

SEALED = Path(__file__).parent / "bundle"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy of the bundle in this folder; tests/make_serving_bundle.py made it."""
    shutil.copytree(SEALED, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(open_bundle(SEALED))


@pytest.fixture(scope="session")
def x() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2500, 6, 5), dtype=np.uint8)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of the bundle, shared by tests that leave it as it was."""
    with serve(tmp_path_factory.mktemp("server"), SEALED, "--drain", "2") as running:
        yield running
