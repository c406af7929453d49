"""A table of 30 mixed columns beside an all-real one as wide as what its network reads.

`python -m tests.benchmarks.mixed 200000` takes fewer rows than the million of
`python -m tests.benchmarks mixed`, and `python -m tests.benchmarks.mixed 200000 rate training` some
of it: names of `measure`'s steps. Both models have the networks that fit the mixed table. Graphs
run in one thread, and another reads and writes; CPU time is that of all threads of the process. The
all-real table is of float32, which is the fastest to read.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from pipeline.config import Config, configure
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.evaluation.evaluate import evaluate
from pipeline.export.bundle_export import export_bundle
from pipeline.export.row_centres import find_centres
from pipeline.model.checkpoint import Checkpoint
from pipeline.training.loop import TrainHooks, train
from serving.batch.job import describe_job, run_job
from serving.batch.output import open_output
from serving.batch.scorer import Scorer, provenance_of
from serving.bundle import Bundle
from serving.cpu import limit_spinning
from serving.drift import MIXED_SCORE_SAMPLES
from serving.engine import Engine
from serving.io.rows import Rows
from serving.p_values import default_samples
from serving.source import Source
from tests.benchmarks.batch import Figure, run_command
from tests.benchmarks.measure import Row

Array = NDArray[Any]
ROWS = 1_000_000
RATED_ROWS = 200_000
"""Of so many rows, the file of the all-real table stays in memory from turn to turn."""
TRAIN_ROWS, EPOCHS = 20_000, 3
TURNS = 5
CHUNK = 100_000
GAPS = 0.1
REALS, POSITIVES, COUNTS, FLAGS = 10, 4, 4, 4
CATEGORIES = (3, 5, 8, 10, 15, 20)
"""Words of each column of them; with two dates, all are 30 columns."""
DATES = 2
FACTORS = 6


@dataclass(frozen=True, slots=True)
class Trained:
    """A model's bundle, the folder with it and files of rows to score, and what trained it."""

    folder: Path
    bundle: Bundle
    dataset: Dataset
    config: Config
    width: int
    """Values that the network reads of a row."""


def measure(rows: int = ROWS, *names: str) -> Iterator[Row | Figure]:
    """Draw and train both, then score both in turns."""
    import torch  # imported here because limit_spinning must run before

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mixed = prepare(folder / "mixed", draw_mixed, rows)
        networks = mixed.config.model
        plain = prepare(
            folder / "plain",
            partial(draw_reals, width=mixed.width),
            rows,
            hidden_dims=networks.hidden_dims,
            latent_dim=networks.latent_dim,
        )
        kinds = f"{len(CATEGORIES)} text, {DATES} date"
        shown = f"{mixed.width} inputs, {networks.hidden_dims[0]} units, {networks.latent_dim} z"
        yield Figure(f"30 columns ({kinds}); both networks", shown, "equal")
        steps: dict[str, Callable[[], Iterator[Row | Figure]]] = {
            "rate": partial(measure_rate, mixed, plain, min(rows, RATED_ROWS)),
            "memory": partial(measure_memory, mixed, plain, rows),
            "training": partial(measure_training, mixed, plain),
        }
        if unknown := set(names) - set(steps):
            raise SystemExit(f"steps are {', '.join(steps)}, got {', '.join(unknown)}")
        for name in names or steps:
            yield from steps[name]()


def draw_mixed(rows: int, seed: int) -> pa.Table:
    """Draw rows whose 30 columns follow from a few factors; a tenth of the cells is null."""
    generator = np.random.default_rng(seed)
    loadings = np.random.default_rng(0)  # the same for all chunks
    factors = generator.standard_normal((rows, FACTORS))
    columns: dict[str, pa.Array] = {}

    def add(name: str, values: Array, kind: pa.DataType) -> None:
        columns[name] = pa.array(values, mask=generator.random(rows) < GAPS).cast(kind)

    def mix() -> Array:
        weights = loadings.standard_normal(FACTORS) / np.sqrt(FACTORS)
        drawn: Array = factors @ weights + 0.5 * generator.standard_normal(rows)
        return drawn

    for number in range(REALS):
        add(f"real_{number}", 3 * mix() + 20, pa.float64())
    for number in range(POSITIVES):
        add(f"positive_{number}", np.exp(mix() + 5), pa.float64())
    for number in range(COUNTS):
        add(f"count_{number}", generator.poisson(np.exp(0.8 * mix() + 1)), pa.int64())
    for number in range(FLAGS):
        add(f"flag_{number}", mix() > 0, pa.bool_())
    for size in CATEGORIES:
        codes = np.clip(np.floor((mix() + 2.2) / 4.4 * size), 0, size - 1).astype(int)
        words = np.array([f"word {code} of {size}" for code in range(size)], object)
        add(f"category_{size}", words[codes], pa.string())
    for number in range(DATES):
        days = np.clip(20_000 + 200 * mix(), 19_000, 21_000).astype("M8[D]")
        add(f"date_{number}", days, pa.date32())
    return pa.table(columns)


def draw_reals(rows: int, seed: int, width: int) -> pa.Table:
    """Draw rows of real numbers that follow from as many factors, without gaps."""
    generator = np.random.default_rng(seed)
    weights = np.random.default_rng(0).standard_normal((FACTORS, width))
    values = generator.standard_normal((rows, FACTORS)) @ weights
    values += 0.5 * generator.standard_normal((rows, width))
    columns = values.astype(np.float32).T
    return pa.table({f"real_{number}": column for number, column in enumerate(columns)})


def prepare(
    folder: Path, draw: Callable[[int, int], pa.Table], rows: int, **settings: Any
) -> Trained:
    """Write the rows, train for a moment on some of them, and export."""
    folder.mkdir()
    parquet.write_table(draw(TRAIN_ROWS, 0), folder / "train.parquet")
    write_rows(folder / "rated.parquet", draw, min(rows, RATED_ROWS))
    write_rows(folder / "rows.parquet", draw, rows)
    config = configure("default", data=str(folder / "train.parquet"), epochs=EPOCHS, **settings)
    dataset = load_dataset(
        config.data.data, valid_fraction=0.1, test_fraction=0.1, likelihood="auto"
    )
    model = train(dataset, config).model
    config = replace(config, model=model.settings)
    git = {"sha": None, "dirty": None}
    checkpoint = Checkpoint(
        model, config, "float32", model.settings.likelihood, dataset.describe(), git
    )
    metrics = evaluate(model, dataset.test.x, nll_samples=1, seed=0).to_json()
    distance = find_centres(dataset.schema, dataset.sample) if dataset.schema else None
    bundle = export_bundle(
        folder / "bundle", checkpoint, metrics, dataset.test.x, distance=distance
    )
    return Trained(folder, bundle, dataset, config, model.px.x_width)


def write_rows(path: Path, draw: Callable[[int, int], pa.Table], rows: int) -> None:
    """Write a file in row groups of `CHUNK` rows."""
    with parquet.ParquetWriter(path, draw(1, 1).schema) as writer:
        for index, start in enumerate(range(0, rows, CHUNK)):
            writer.write_table(draw(min(CHUNK, rows - start), 1 + index))


def measure_rate(mixed: Trained, plain: Trained, rows: int) -> Iterator[Figure]:
    """Parquet to Parquet in turns, with as many draws for both, then with the default of each."""
    for draws in (1, MIXED_SCORE_SAMPLES):
        yield from compare_rates(mixed, plain, rows, (draws, draws), "at least 0.60")
    defaults = tuple(default_samples(item.bundle, "score") for item in (mixed, plain))
    yield from compare_rates(mixed, plain, rows, defaults, "")


def compare_rates(
    mixed: Trained, plain: Trained, rows: int, draws: tuple[int, ...], goal: str
) -> Iterator[Figure]:
    """The rates of the best turn of each, after one that brings the files into memory."""
    taken = np.array(
        [
            [time_job(item, own) for item, own in zip((mixed, plain), draws, strict=True)]
            for _ in range(1 + TURNS)
        ]
    )[1:]
    name = " and ".join(str(number) for number in dict.fromkeys(draws))
    for place, kind in enumerate(("CPU", "wall")):
        ours, beside = rows / taken[..., place].min(0)
        yield Figure(
            f"rows a second of {kind} time, mixed / all-real, draws {name}",
            f"{ours:,.0f} / {beside:,.0f} = {ours / beside:.2f}",
            goal,
        )


def time_job(item: Trained, draws: int) -> tuple[float, float]:
    """CPU and wall seconds of a whole job with one worker, into a folder of its own."""
    cpu, wall = time.process_time(), time.perf_counter()
    rows = Rows(str(item.folder / "rated.parquet"))
    made_by = provenance_of(Source(item.bundle), 0, draws)
    scorer = Scorer(Engine(item.bundle), made_by, "score", rows.schema, ids=rows.ids)
    output = item.folder / "out"
    with open_output(str(output), describe_job(scorer, rows), overwrite=False) as folder:
        run_job(scorer, rows, folder, workers=1)
    taken = time.process_time() - cpu, time.perf_counter() - wall
    shutil.rmtree(output)
    return taken


def measure_memory(mixed: Trained, plain: Trained, rows: int) -> Iterator[Figure]:
    """Peak memory of `vae score` with the defaults, in a process of its own."""
    for name, item in (("mixed", mixed), ("all-real", plain)):
        _, peak = run_command(item.folder, item.folder / "rows.parquet", ids=(), workers=1)
        yield Figure(f"peak memory, {rows:,} rows, {name}", f"{peak / 1e6:.0f} MB", "below 1000 MB")


def measure_training(mixed: Trained, plain: Trained) -> Iterator[Row]:
    """CPU seconds of a step of 200 rows, the default."""
    turns = [[time_steps(item) for item in (mixed, plain)] for _ in range(TURNS)]
    ours, beside = np.array(turns).min(0)
    yield Row("CPU time of a training step, mixed / all-real", ours, beside, "at most 2x")


def time_steps(item: Trained) -> float:
    """Median CPU seconds from one step of training to the next."""
    marks: list[float] = []
    hooks = TrainHooks(advance=lambda steps: marks.append(time.process_time()))
    train(item.dataset, item.config, hooks=hooks)
    return float(np.median(np.diff(marks)))


if __name__ == "__main__":
    limit_spinning()
    for line in measure(int(next(iter(sys.argv[1:]), ROWS)), *sys.argv[2:]):
        print(line, flush=True)
