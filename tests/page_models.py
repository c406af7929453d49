"""Models whose page is photographed: digits, digits in colour, and a mixed table of homes."""

import datetime
import gzip
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from pipeline.config import configure
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.evaluation.evaluate import evaluate
from pipeline.export.bundle_export import export_bundle
from serving.bundle import Bundle
from tests.trained_models import train_checkpoint

DISTRICTS = ("Altstadt", "Harbour", "Hillside", "Riverside", "University", "West End")
HEATING = ("district heating", "gas", "heat pump", "oil")
IMAGE_HEADER, SIDE = 16, 28


def read_digits(rows: int) -> np.ndarray:
    """Return MNIST's first training images, (rows, 28, 28) of uint8."""
    packed = files("pipeline").joinpath("data/mnist/train-images-idx3-ubyte.gz").read_bytes()
    size = SIDE * SIDE
    content = gzip.decompress(packed)[IMAGE_HEADER : IMAGE_HEADER + rows * size]
    return np.frombuffer(content, np.uint8).reshape(rows, SIDE, SIDE)


def colour_digits(rows: int) -> np.ndarray:
    """Return digits in a random hue on a dark ground of another, (rows, 28, 28, 3) of uint8."""
    generator = np.random.default_rng(0)
    shares = read_digits(rows)[..., None] / 255
    turns = generator.random((rows, 1, 1, 1)) * 2 * np.pi
    thirds = np.array([0, 2, 4]) * np.pi / 3
    ink = 0.62 + 0.38 * np.cos(turns - thirds)
    ground = 0.22 + 0.16 * np.cos(turns - thirds + 2.6)
    return np.round(255 * (ink * shares + ground * (1 - shares))).astype(np.uint8)


def draw_homes(rows: int) -> pa.Table:
    """Draw homes to rent: text, counts, dates, flags and gaps that depend on each other."""
    generator = np.random.default_rng(0)
    wealth, size = generator.standard_normal((2, rows))
    noise = generator.standard_normal((rows, 6))
    area = np.exp(4.2 + 0.35 * size + 0.05 * noise[:, 0])
    rooms = np.clip(np.round(area / 24 + 0.4 * noise[:, 1]), 1, 8).astype(int)
    district = np.clip(np.floor(1.1 * wealth + 0.5 * noise[:, 2] + 3), 0, 5).astype(int)
    age = np.clip(22 - 12 * wealth + 8 * noise[:, 3], 0, 60)
    rent = area * np.exp(2.55 + 0.22 * wealth + 0.06 * noise[:, 4])
    heating = np.where(age < 10, 2, np.where(age < 25, 0, np.where(age < 40, 1, 3)))
    first = datetime.date(2026, 1, 1)
    built = [first - datetime.timedelta(int(365 * years)) for years in age]

    def column(values: object, kind: pa.DataType, gaps: float = 0.0) -> pa.Array:
        return pa.array(values, kind, mask=generator.random(rows) < gaps)

    return pa.table(
        {
            "rent": column(np.round(rent, 2), pa.float64()),
            "area": column(np.round(area, 1), pa.float64()),
            "rooms": column(rooms, pa.int64()),
            "district": column(np.array(DISTRICTS, object)[district], pa.string()),
            "heating": column(np.array(HEATING, object)[heating], pa.string(), 0.05),
            "built": column(built, pa.date32(), 0.1),
            "furnished": column(size + noise[:, 5] < -0.4, pa.bool_(), 0.05),
        }
    )


def make_digits(folder: Path) -> Bundle:
    """Train on digits for about a minute."""
    return _make_images(folder, "digits", read_digits(30_000))


def make_colours(folder: Path) -> Bundle:
    """Train on digits in colour for about two minutes."""
    return _make_images(folder, "colour-digits", colour_digits(20_000))


def make_homes(folder: Path) -> Bundle:
    """Train on a mixed table for about a minute."""
    parquet.write_table(draw_homes(4000), folder / "homes.parquet")
    dataset = load_dataset(
        str(folder / "homes.parquet"), valid_fraction=0.1, test_fraction=0.1, likelihood="auto"
    )
    sizes = {"hidden_dims": (64,), "latent_dim": 4, "epochs": 40}
    return _export(folder / "homes", dataset, likelihood="mixed", **sizes)


def _make_images(folder: Path, name: str, x: np.ndarray) -> Bundle:
    np.save(folder / f"{name}.npy", x)
    dataset = load_dataset(str(folder / f"{name}.npy"), valid_fraction=0.1, test_fraction=0.1)
    return _export(folder / name, dataset, hidden_dims=(512,), latent_dim=16, epochs=25)


def _export(out: Path, dataset: Dataset, **settings: object) -> Bundle:
    config = configure("default", data=dataset.source, learning_rate=1e-3, **settings)
    checkpoint = train_checkpoint(dataset, config)
    metrics = evaluate(checkpoint.model, dataset.test.x, nll_samples=4, seed=0)
    return export_bundle(out, checkpoint, metrics.to_json(), dataset.test.x)
