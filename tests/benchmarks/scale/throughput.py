"""Steps a second on streamed rows beside those on the same rows in memory, in turns in one run.

The preset `default` trains on MNIST's training images, four times over, without validation, so that
nothing but steps is timed: 2 epochs of 1,867 steps, of which the beginning of each epoch is part.
Each kind of data has its turn in each round. Wall times depend on the neighbours, and the best turn
of each is compared; the processor time of all threads hardly does, but does not show a wait.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet

from pipeline.config import configure
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.data.plan import Resources
from pipeline.data.streaming.loading import load_streamed
from pipeline.training.beginning import begin_training
from pipeline.training.loop import continue_training
from pipeline.training.schedules import total_steps
from serving.cpu import available_cores

COPIES, EPOCHS, ROUNDS = 4, 2, 3
MEMORY = 1 << 30
"""Which gives Parquet two windows of 120,000 rows."""
VALID, TEST = 0.0, 0.004


@dataclass(slots=True)
class Kind:
    """A kind of data, and the best of its turns."""

    what: str
    dataset: Dataset
    epochs: int
    least: float
    """The least share of the steps a second in memory."""
    step_s: float = field(init=False, default=float("inf"))
    cpu_s: float = field(init=False, default=float("inf"))

    def take_turn(self) -> None:
        """Train once."""
        config = configure("default", epochs=self.epochs, patience=self.epochs)
        state = begin_training(self.dataset, config, "cpu")
        steps = total_steps(self.dataset.train_rows, config.train)
        wall, cpu = time.perf_counter(), time.process_time()
        continue_training(state, self.dataset)
        self.step_s = min(self.step_s, (time.perf_counter() - wall) / steps)
        self.cpu_s = min(self.cpu_s, (time.process_time() - cpu) / steps)

    def tell(self, beside: "Kind") -> str:
        """Return a line with the steps a second, and the processor time of a step."""
        share, work = beside.step_s / self.step_s, self.cpu_s / beside.cpu_s
        return (
            f"{self.what:<48} {1 / self.step_s:>7.1f} steps/s  {share:>6.3f} of memory, at least "
            f"{self.least}; processor time {work:.3f}x"
        )


def measure() -> Iterator[object]:
    """Measure each kind of data."""
    torch.set_num_threads(available_cores())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = load_dataset("mnist", valid_fraction=0, test_fraction=0.1).sample
        many = np.concatenate([x] * COPIES).reshape(COPIES * len(x), -1)
        np.save(folder / "x.npy", many)
        save_parquet(folder / "x.parquet", many)
        save_images(folder / "images", x)
        resources = Resources(memory=MEMORY, cache=folder / "cache")
        kinds = [
            Kind("in memory", load(folder / "x.npy"), EPOCHS, 1),
            *(
                Kind(what, load(folder / name, resources), epochs, least)
                for what, name, epochs, least in (
                    (".npy, mapped", "x.npy", EPOCHS, 0.95),
                    ("Parquet of fixed bytes, by blocks", "x.parquet", EPOCHS, 0.9),
                    ("folder of 60,000 PNGs, decoded once", "images", EPOCHS * COPIES, 0.9),
                )
            ),
        ]
        for _ in range(ROUNDS):
            for kind in kinds:
                kind.take_turn()
        for kind in kinds:
            yield kind.tell(kinds[0])


def load(path: Path, resources: Resources | None = None) -> Dataset:
    """Load data into memory, or stream them if `resources` are given."""
    if resources is None:
        return load_dataset(str(path), valid_fraction=VALID, test_fraction=TEST)
    return load_streamed(str(path), resources, valid_fraction=VALID, test_fraction=TEST)


def save_parquet(path: Path, x: np.ndarray, group: int = 20_000) -> None:
    """Write rows of bytes as one column of fixed bytes, uncompressed, in groups of rows."""
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(x.shape[1]), len(x), [None, pa.py_buffer(np.ascontiguousarray(x))]
    )
    table = pa.table({"x": column})
    parquet.write_table(table, path, row_group_size=group, compression="none", use_dictionary=False)


def save_images(folder: Path, x: np.ndarray) -> None:
    """Write each image as a PNG."""
    folder.mkdir()
    for number, image in enumerate(x):
        Image.fromarray(image).save(folder / f"{number:05d}.png", compress_level=1)
