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
from pipeline.model.checkpoint import Checkpoint
from pipeline.parity.bundle_report import add_report
from pipeline.parity.check import check_parity
from pipeline.training.loop import train
from serving.bundle import Bundle, open_bundle
from serving.mlflow_store import connect

torch.set_num_threads(1)

PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
Trained = tuple[Checkpoint, Dataset]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU its tests are no part of the run: one that is skipped looks like a check."""
    if torch.cuda.is_available():
        return
    away = [item for item in items if item.get_closest_marker("cuda")]
    items[:] = [item for item in items if item not in away]
    config.hook.pytest_deselected(items=away)


def draw_images(rows: int) -> np.ndarray:
    """Bars at random places: little images with structure."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 40, (rows, 6, 5), dtype=np.uint8)
    x[np.arange(rows), generator.integers(0, 6, rows)] = 230
    return x


def draw_table(rows: int) -> np.ndarray:
    """Four columns of different units, two factors behind them."""
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((rows, 2))
    x = factors @ generator.standard_normal((2, 4)) + generator.standard_normal((rows, 4)) / 4
    return (x * [1, 10, 0.1, 100] + [5, 0, -3, 1000]).astype(np.float32)


def load(folder: Path, x: np.ndarray) -> Dataset:
    np.save(folder / "x.npy", x)
    return load_dataset(str(folder / "x.npy"), valid_fraction=0.1, test_fraction=0.25)


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
    """Export and check."""
    checkpoint, dataset = trained
    ranges = calibrate(checkpoint.model, dataset.train.x) if precision == "int8" else None
    metrics = evaluate(checkpoint.model, dataset.test.x, nll_samples=4, seed=0)
    rows = metrics.to_json(), dataset.test.x
    bundle = export_bundle(out, checkpoint, *rows, precision=precision, ranges=ranges)
    report = check_parity(bundle, checkpoint.model, dataset.test.x)
    return add_report(bundle, report)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(tmp_path_factory.mktemp("images"), draw_images(400))


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(tmp_path_factory.mktemp("table"), draw_table(400))


@pytest.fixture(scope="session")
def trained(images: Dataset) -> Trained:
    return train_checkpoint(images, tiny_config(images)), images


@pytest.fixture(scope="session")
def trained_table(table: Dataset) -> Trained:
    return train_checkpoint(table, tiny_config(table)), table


@pytest.fixture(scope="session")
def sealed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A checked bundle that no test may change."""
    return make_bundle(tmp_path_factory.mktemp("sealed") / "bundle", trained)


@pytest.fixture(scope="session")
def worse(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of the same data that hardly learned."""
    weak = train_checkpoint(trained[1], tiny_config(trained[1], epochs=1, learning_rate=1e-5))
    return make_bundle(tmp_path_factory.mktemp("worse") / "bundle", (weak, trained[1]))


@pytest.fixture(scope="session")
def reduced(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A checked bundle of each reduced precision, which no test may change."""
    folder = tmp_path_factory.mktemp("reduced")
    return {name: make_bundle(folder / name, trained, name) for name in PRECISIONS}


@pytest.fixture
def bundle(sealed: Bundle, tmp_path: Path) -> Bundle:
    """A copy of it to change."""
    shutil.copytree(sealed.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sqlite store with its tables, which takes seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        connect()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own, as `MLFLOW_TRACKING_URI`."""
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_store, path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return path
