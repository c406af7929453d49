import shutil
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Bundle, open_bundle
from serving.engine import Engine

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
