import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import Config, Precision, configure
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.evaluation.evaluate import evaluate
from pipeline.export.bundle_export import export_bundle
from pipeline.export.quantization import calibrate
from pipeline.export.row_centres import find_centres
from pipeline.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.parity.bundle_report import add_report
from pipeline.parity.check import check_parity
from pipeline.training.loop import train
from serving.bundle import Bundle, open_bundle
from serving.mlflow_store import connect
from tests.mixed_tables import make_dataset
from tests.shared import make_once

torch.set_num_threads(1)

PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
Trained = tuple[Checkpoint, Dataset]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that need a GPU where there is none: a skipped test looks like a check."""
    if torch.cuda.is_available():
        return
    away = [item for item in items if item.get_closest_marker("cuda")]
    items[:] = [item for item in items if item not in away]
    config.hook.pytest_deselected(items=away)


def draw_images(rows: int) -> np.ndarray:
    """Draw small images with structure: one bar each, at a random place."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 40, (rows, 6, 5), dtype=np.uint8)
    x[np.arange(rows), generator.integers(0, 6, rows)] = 230
    return x


def draw_table(rows: int) -> np.ndarray:
    """Draw four columns in different units that depend on two factors."""
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((rows, 2))
    x = factors @ generator.standard_normal((2, 4)) + generator.standard_normal((rows, 4)) / 4
    return (x * [1, 10, 0.1, 100] + [5, 0, -3, 1000]).astype(np.float32)


def load(folder: Path, x: np.ndarray) -> Dataset:
    np.save(folder / "x.npy", x)
    return load_file(folder)


def load_file(folder: Path) -> Dataset:
    return load_dataset(str(folder / "x.npy"), valid_fraction=0.1, test_fraction=0.25)


def share_data(tmp_path_factory: pytest.TempPathFactory, name: str, x: np.ndarray) -> Dataset:
    """Write the data once in a run of the tests: checkpoints name its path."""
    return load_file(make_once(tmp_path_factory, name, lambda folder: np.save(folder / "x.npy", x)))


def train_checkpoint(dataset: Dataset, config: Config) -> Checkpoint:
    result = train(dataset, config)
    return Checkpoint(
        model=result.model,
        config=replace(config, model=result.model.settings),
        x_dtype=str(dataset.train.x.dtype),
        likelihood=result.model.settings.likelihood,
        data=dataset.describe(),
        git={"sha": "0" * 40, "dirty": False},
        run_id=None,
    )


def tiny_config(dataset: Dataset, **settings: object) -> Config:
    tiny = {"hidden_dims": (16,), "latent_dim": 3, "epochs": 10, "batch_size": 50}
    tiny["learning_rate"] = 1e-2
    return configure("default", data=dataset.source, test_fraction=0.25, **{**tiny, **settings})


def make_bundle(out: Path, trained: Trained, precision: Precision = "float32") -> Bundle:
    """Export a model as a bundle, and check its parity."""
    checkpoint, dataset = trained
    ranges = calibrate(checkpoint.model, dataset.sample) if precision == "int8" else None
    metrics = evaluate(checkpoint.model, dataset.test.x, nll_samples=4, seed=0)
    rows = metrics.to_json(), dataset.test.x
    distance = find_centres(dataset.schema, dataset.sample) if dataset.schema else None
    bundle = export_bundle(
        out, checkpoint, *rows, precision=precision, ranges=ranges, distance=distance
    )
    report = check_parity(bundle, checkpoint.model, dataset.test.x)
    return add_report(bundle, report)


def share_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, name: str, dataset: Dataset, **settings: object
) -> Trained:
    """Train once in a run of the tests; load the checkpoint in each of its processes."""

    def make(folder: Path) -> None:
        save_checkpoint(folder, train_checkpoint(dataset, tiny_config(dataset, **settings)))

    return load_checkpoint(make_once(tmp_path_factory, name, make)), dataset


def share_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    trained: Trained,
    precision: Precision = "float32",
) -> Bundle:
    """Export and check once in a run of the tests; open the bundle in each of its processes."""

    def make(folder: Path) -> None:
        shutil.rmtree(folder / "bundle", ignore_errors=True)
        make_bundle(folder / "bundle", trained, precision)

    return open_bundle(make_once(tmp_path_factory, name, make) / "bundle")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return share_data(tmp_path_factory, "images", draw_images(400))


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return share_data(tmp_path_factory, "table", draw_table(400))


@pytest.fixture(scope="session")
def trained(images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return share_checkpoint(tmp_path_factory, "trained", images)


@pytest.fixture(scope="session")
def trained_table(table: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return share_checkpoint(tmp_path_factory, "trained_table", table)


@pytest.fixture(scope="session")
def sealed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a checked bundle that no test may change."""
    return share_bundle(tmp_path_factory, "sealed", trained)


@pytest.fixture(scope="session")
def sealed_table(trained_table: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a checked bundle of a model of a table, which no test may change."""
    return share_bundle(tmp_path_factory, "sealed_table", trained_table)


@pytest.fixture(scope="session")
def trained_mixed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    settings = {"epochs": 30, "fit_sizes": False}
    return share_checkpoint(tmp_path_factory, "trained_mixed", make_dataset(1200), **settings)


@pytest.fixture(scope="session")
def sealed_mixed(trained_mixed: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a checked bundle of a model of a mixed table, which no test may change."""
    return share_bundle(tmp_path_factory, "sealed_mixed", trained_mixed)


@pytest.fixture(scope="session")
def worse(images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle of a model of the same data that hardly learned."""
    weak = share_checkpoint(tmp_path_factory, "weak", images, epochs=1, learning_rate=1e-5)
    return share_bundle(tmp_path_factory, "worse", weak)


@pytest.fixture(scope="session")
def reduced(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Return a checked bundle of each reduced precision, which no test may change."""
    return {name: share_bundle(tmp_path_factory, name, trained, name) for name in PRECISIONS}


@pytest.fixture
def bundle(sealed: Bundle, tmp_path: Path) -> Bundle:
    """Return a copy of `sealed` to change."""
    shutil.copytree(sealed.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Path:
    """Return an sqlite store with its tables, which takes seconds to make."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
            connect(create=True)

    return make_once(tmp_path_factory, "store", make) / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a store of the test's own, which is `MLFLOW_TRACKING_URI`."""
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_store, path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return path
