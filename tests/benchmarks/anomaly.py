"""A real use: a model of the digits 0 to 8 finds the nines in a mix, ranked by `vae score`.

`python -m tests.benchmarks.anomaly [SEED ...]` trains one model a seed on the digits 0 to 8 of
MNIST's training set, scores all of MNIST's test set, and prints how well low scores tell the nines:
the area under the ROC curve, 0.5 for chance. The ± of a seed is over rows (Hanley & McNeil, 1982),
that of the mean over seeds.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import dataset, parquet

from pipeline.checkpoint import Checkpoint
from pipeline.config import configure
from pipeline.data import MNIST, load_dataset
from pipeline.evaluate import evaluate
from pipeline.export import export_bundle
from pipeline.train import train
from serving.formats import read_array

UNSEEN = 9
SEEDS = (0, 1)
ERRORS = ("elbo", "log_likelihood", "kl")
"""What is ranked: the bound, the reconstruction's part of it, and the rest; low ELBO is unusual."""


def measure(seeds: Sequence[int] = SEEDS, **settings: Any) -> Iterator[str]:
    """Train, score and rank; `settings` are those of the training."""
    areas: dict[str, list[float]] = {name: [] for name in ERRORS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_known(folder / "known.npz")
        write_mix(folder / "mix.parquet")
        for seed in seeds:
            result = score_mix(folder, seed, **settings)
            scores = dataset.dataset(folder / f"scores-{seed}").to_table()
            unseen = scores["label"].to_numpy() == UNSEEN
            words = []
            for name in ERRORS:
                sign = 1 if name == "kl" else -1
                area = find_area(sign * scores[name].to_numpy(), unseen)
                areas[name].append(area)
                words.append(f"{name} {area:.3f} ± {area_error(area, unseen):.3f}")
            yield (
                f"nines among {len(unseen):,} digits, AUROC, seed {seed}: {', '.join(words)}; "
                f"drift of the mix D = {result['drift_d']:.3f}"
            )
    for name, values in areas.items():
        spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        yield f"AUROC of {name} over {len(seeds)} seeds: {np.mean(values):.3f} ± {spread:.3f}"


def write_known(path: Path) -> None:
    """The training rows that are no nines; the pipeline holds some of them out."""
    x, labels = read_array(MNIST / "train-images-idx3-ubyte.gz"), read_labels("train")
    np.savez(path, x=x[labels != UNSEEN])


def write_mix(path: Path) -> None:
    """MNIST's test set, nines included, as bytes, with its labels."""
    x, labels = read_array(MNIST / "t10k-images-idx3-ubyte.gz"), read_labels("t10k")
    rows = pa.array([row.tobytes() for row in x], pa.binary(x[0].nbytes))
    parquet.write_table(pa.table({"x": rows, "label": labels}), path)


def read_labels(split: str) -> NDArray[np.uint8]:
    """Labels of `train` or `t10k`."""
    labels: NDArray[np.uint8] = read_array(MNIST / f"{split}-labels-idx1-ubyte.gz")
    return labels


def score_mix(folder: Path, seed: int, **settings: Any) -> Mapping[str, Any]:
    """Train on what is known, export, and run `vae score` on the mix; give its result."""
    config = configure("default", data=str(folder / "known.npz"), seed=seed, **settings)
    config = replace(config, evaluate=replace(config.evaluate, nll_samples=1))
    rows = load_dataset(
        config.data.data,
        valid_fraction=config.data.valid_fraction,
        test_fraction=config.data.test_fraction,
    )
    trained = train(rows, config)
    checkpoint = Checkpoint(
        model=trained.model,
        config=config,
        x_dtype=str(rows.train.x.dtype),
        likelihood=trained.likelihood,
        data=rows.describe(),
        git={"sha": None, "dirty": None},
        run_id=None,
    )
    metrics = evaluate(trained.model, rows.test.x, nll_samples=1, seed=0)
    bundle = folder / f"known-{seed}"
    export_bundle(bundle, checkpoint, metrics.to_json(), rows.test.x)
    command = [sys.executable, "-m", "pipeline.cli", "score", "mix.parquet", f"scores-{seed}"]
    command += ["--model", str(bundle), "--id", "label", "--report", f"report-{seed}.html"]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    result: Mapping[str, Any] = json.loads(done.stdout)
    return result


def find_area(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Chance that a positive row scores above another one; ties count half (Mann-Whitney)."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    hits = int(positive.sum())
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (len(scores) - hits)))


def area_error(area: float, positive: NDArray[np.bool_]) -> float:
    """Standard error of an area over rows."""
    hits, others = int(positive.sum()), int((~positive).sum())
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (hits - 1) * (q1 - area**2) + (others - 1) * (q2 - area**2)
    return float(np.sqrt(spread / (hits * others)))


if __name__ == "__main__":
    for line in measure([int(seed) for seed in sys.argv[1:]] or SEEDS):
        print(line, flush=True)
