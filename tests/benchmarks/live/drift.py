"""How often clean rows alarm, and how soon turned digits do.

A model of digits is trained on 10,000 of MNIST's 70,000, with 5,000 others held out. Clean streams
are of digits drawn from that model itself, row by row, so that any number of rows is exchangeable;
5,000 other draws are the held-out rows of each. Changed streams are of the 55,000 real digits that
are left, in another order in each, of which 10 % are turned by 30 degrees from some row on. All
scores are those of the bundle's `score` operation, with the seed and the draws of held-out rows.
"""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.bundle import Bundle, open_bundle
from serving.drift import SCORE_SEED, held_out_samples
from serving.drift_test import BLOCK, LEVEL, Alarm, DriftTest
from serving.engine import Engine
from serving.files import staged_file
from serving.p_values import read_held_out_scores
from tests.benchmarks.anomaly import read_mnist
from tests.benchmarks.cache import CACHE

Array = NDArray[Any]

TRAINED, HELD_OUT = 10_000, 5_000
STREAMS, STREAM_ROWS = 50, 100_000
TURNED, DEGREES = 0.1, 30
CHANGED_STREAMS, WITHIN = 20, 5_000
CALM = 50_000
DEALS = 9
_DRAWN_ROWS = 10_000


def measure() -> Iterator[str]:
    """Measure false alarms, delays and the rate of the test."""
    bundle, x = prepare()
    engine = Engine(bundle)
    yield from measure_clean(engine)
    held_out = read_held_out_scores(bundle)
    if held_out is None:
        raise ValueError(f"{bundle.path} has no held-out scores")
    upright = score(engine, x)
    turned = score(engine, turn(x))
    for calm in (0, CALM):
        yield from measure_changed(held_out.scores["elbo"], upright, turned, calm)
    yield from measure_rate(held_out.scores["elbo"], upright)


def measure_clean(engine: Engine) -> Iterator[str]:
    """Test streams of draws from the model itself, each against other draws of its own.

    Fifty streams tell a share of 1 % badly, so all their rows are dealt again, in other orders.
    """
    rows = draw_streams(engine)
    generator = np.random.default_rng(0)
    largest = [largest_value(stream, generator) for stream in rows]
    yield from describe_clean("", largest)
    for deal in range(DEALS):
        generator.shuffle(rows.reshape(-1))
        largest += [largest_value(stream, generator) for stream in rows]
        print(f"dealt {deal + 1} of {DEALS} times again", file=sys.stderr, flush=True)
    yield from describe_clean(f", the rows dealt {1 + DEALS} times", largest)


def describe_clean(how: str, largest: Sequence[float]) -> Iterator[str]:
    """Say how many streams alarm at some levels, the default first."""
    streams = len(largest)
    for level in (LEVEL, 0.05, 0.2):
        alarms = sum(value >= -math.log(level) for value in largest)
        # of independent streams that alarm with the chance `level`
        chance = sum(
            math.comb(streams, k) * level**k * (1 - level) ** (streams - k) for k in range(alarms)
        )
        yield (
            f"clean, level {level:g}: {alarms} of {streams} streams of {STREAM_ROWS:,} rows alarm, "
            f"{alarms / streams:.2%}{how}; so many or more have chance {1 - chance:.2g} if the "
            f"level is kept   goal: at most {level:.0%}"
        )


def largest_value(stream: Array, generator: np.random.Generator) -> float:
    """Return the largest log e-value of a stream, whose first rows are the held-out ones."""
    test = DriftTest({"elbo": stream[:HELD_OUT]})
    test.break_ties_by(generator.spawn(1)[0])  # else all streams would break them alike
    test.add({"elbo": stream[HELD_OUT:]}, 0.0)
    return test.largest()["elbo"]


def draw_streams(engine: Engine) -> Array:
    """Return scores (streams, HELD_OUT + STREAM_ROWS) of draws, kept for another run."""
    digest = engine.bundle.manifest.digest[:12]
    file = CACHE / f"live-drift-{digest}.npy"
    if not file.exists():
        scores = np.empty((STREAMS, HELD_OUT + STREAM_ROWS), np.float32)
        for stream in range(STREAMS):
            scores[stream] = draw_scores(engine, stream, HELD_OUT + STREAM_ROWS)
            print(f"drawn {stream + 1} of {STREAMS} streams", file=sys.stderr, flush=True)
        with staged_file(file) as temporary, temporary.open("wb") as stream_file:
            np.save(stream_file, scores)
    found: Array = np.load(file)
    return found


def measure_changed(held: Array, upright: Array, turned: Array, calm: int) -> Iterator[str]:
    """Test streams in which some digits are turned from row `calm` on."""
    delays, early, since = [], 0, []
    for stream in range(CHANGED_STREAMS):
        alarm = run_changed(held, upright, turned, calm, stream)
        if alarm is not None and alarm.rows <= calm:
            early += 1
        elif alarm is not None:
            delays.append(alarm.rows - calm)
            since.append(alarm.since_rows - calm)
    found = sum(delay <= WITHIN for delay in delays)
    after = f"after {calm:,} clean rows" if calm else "from the first row on"
    spread = ""
    if delays:
        spread = (
            f"; alarm after {min(delays):,} to {max(delays):,} rows, median "
            f"{np.median(delays):,.0f}; its start is told to {max(map(abs, since)):,} rows"
        )
    yield (
        f"{TURNED:.0%} turned by {DEGREES}°, {after}: {found} of {CHANGED_STREAMS} alarm within "
        f"{WITHIN:,} rows{spread}; {early} alarm before the change   goal: {CHANGED_STREAMS}"
    )


def run_changed(held: Array, upright: Array, turned: Array, calm: int, seed: int) -> Alarm | None:
    """Return the alarm of one order of the rows, no row of which comes twice."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(upright))[: calm + WITHIN]
    changed = (np.arange(len(order)) >= calm) & (generator.random(len(order)) < TURNED)
    test = DriftTest({"elbo": held}, LEVEL)
    test.add({"elbo": np.where(changed, turned[order], upright[order])}, 0.0)
    return test.alarms.get("elbo")


def measure_rate(held: Array, elbo: Array) -> Iterator[str]:
    """Measure the rows a second of one process, of one score and of one with 20 columns."""
    for columns in (0, 20):
        names = ["elbo", *(f"column {n}" for n in range(columns))]
        test = DriftTest(dict.fromkeys(names, held))
        rows = elbo[: len(elbo) // BLOCK // (columns + 1) * BLOCK]
        started = time.process_time()
        test.add(dict.fromkeys(names, rows), 0.0)
        rate = len(rows) / (time.process_time() - started)
        yield f"rate: {rate:,.0f} rows/s of CPU time, with {columns} columns   goal: 50,000"


def draw_scores(engine: Engine, seed: int, rows: int) -> Array:
    """Return scores (rows,) of rows drawn from the model, independent of those of other seeds."""
    parts = []
    for start in range(0, rows, _DRAWN_ROWS):
        x = engine.draw(min(_DRAWN_ROWS, rows - start), seed, start=start)
        parts.append(score(engine, np.asarray(x).round().astype(np.uint8)))
    return np.concatenate(parts)


def score(engine: Engine, x: Array) -> Array:
    """Score rows as the held-out rows were."""
    return engine.score(x, held_out_samples(mixed=False), SCORE_SEED)["elbo"]


def turn(x: Array) -> Array:
    """Turn images by `DEGREES`."""
    turned = [Image.fromarray(row).rotate(DEGREES, Image.Resampling.BILINEAR) for row in x]
    return np.stack([np.asarray(image) for image in turned])


def prepare() -> tuple[Bundle, Array]:
    """Return the bundle, trained unless it is cached, and the rows that it has never seen."""
    x = np.concatenate([read_mnist(split)[0] for split in ("train", "t10k")])
    x = x[np.random.default_rng(0).permutation(len(x))]  # MNIST's test set is in two parts
    folder = CACHE / "live-drift"
    if not folder.exists():
        new = CACHE / f"new-{os.getpid()}"
        shutil.rmtree(new, ignore_errors=True)
        train(new, x[:TRAINED], x[TRAINED : TRAINED + HELD_OUT])
        new.rename(folder)
    return open_bundle(folder), x[TRAINED + HELD_OUT :]


def train(out: Path, x: Array, held_out: Array) -> None:
    """Train a small model on some rows; export it with others as held-out ones."""
    import torch  # imported here because limit_spinning must run before

    from pipeline.config import configure
    from pipeline.data.dataset import load_dataset
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.export.bundle_export import export_bundle
    from pipeline.model.checkpoint import Checkpoint
    from pipeline.training.loop import train as fit
    from serving.cpu import available_cores

    torch.set_num_threads(available_cores())
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = out.parent / f"{out.name}.npy"
    np.save(rows, x)
    config = configure("seed", data=str(rows), seed=0, epochs=20)
    data = config.data
    dataset = load_dataset(
        data.data, valid_fraction=data.valid_fraction, test_fraction=data.test_fraction
    )
    trained = fit(dataset, config)
    rows.unlink()
    checkpoint = Checkpoint(
        model=trained.model,
        config=config,
        x_dtype=str(dataset.train.x.dtype),
        likelihood=trained.model.settings.likelihood,
        data=dataset.describe(),
        git={"sha": None, "dirty": None},
        run_id=None,
    )
    metrics = evaluate(trained.model, held_out, nll_samples=1, seed=0)
    export_bundle(out, checkpoint, metrics.to_json(), held_out)
