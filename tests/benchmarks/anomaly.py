"""A real use: a model of the digits 0 to 8 finds the nines among them by the scores of `vae score`.

`python -m tests.benchmarks.anomaly [SEED ...]` trains one model per seed on the digits 0 to 8 of
MNIST's training set, scores MNIST's whole test set, and prints how well low scores find the nines,
as the area under the ROC curve (0.5 for chance). It does the same for the digits 0 to 8 of the test
set rotated by 90 degrees, among the same digits upright. Beside each stands the area by scores
whose rows all share one draw. The ± of a seed is the standard error over rows (Hanley & McNeil,
1982), that of a mean is over seeds.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import dataset, parquet

from pipeline.data.dataset import load_dataset
from pipeline.data.readers import MNIST
from serving.bundle import open_bundle
from serving.cpu import available_cores, limit_spinning
from serving.engine import Engine
from serving.io.array_files import read_array
from serving.noise import draw_rows

UNSEEN = 9
SEEDS = (0, 1)
ERRORS = ("elbo", "log_likelihood")
"""The scores to rank by: the bound, and its reconstruction term; low values are unusual."""


def measure(seeds: Sequence[int] = SEEDS, **settings: Any) -> Iterator[str]:
    """Train, score and rank; `settings` are settings of the training."""
    areas: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_rows(folder)
        for seed in seeds:
            bundle = train_known(folder, seed, **settings)
            for name in ("nines", "turned"):
                result = score(folder, name, bundle)
                table = dataset.dataset(result["out"]).to_table()
                unusual = table["unusual"].to_numpy(zero_copy_only=False)
                shared = share_draw(bundle, folder / f"{name}.parquet")
                for error in ERRORS:
                    area = find_area(-table[error].to_numpy(), unusual)
                    beside = find_area(-shared[error], unusual)
                    areas.setdefault(f"{name} by {error}", []).append(area)
                    areas.setdefault(f"{name} by {error}, one draw for all", []).append(beside)
                    yield (
                        f"AUROC of {name} by {error}, seed {seed}: {area:.3f} ± "
                        f"{area_error(area, unusual):.3f}, with one draw for all {beside:.3f}; "
                        f"drift D = {result['drift_d']:.3f}"
                    )
    for name, values in areas.items():
        spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        yield f"AUROC of {name}, {len(seeds)} seeds: {np.mean(values):.3f} ± {spread:.3f}"


def write_rows(folder: Path) -> None:
    """Write the training rows of known digits, and two mixes of test rows."""
    x, digits = read_mnist("train")
    np.savez(folder / "known.npz", x=x[digits != UNSEEN])
    x, digits = read_mnist("t10k")
    write_mix(folder / "nines.parquet", x, digits == UNSEEN)
    known = x[digits != UNSEEN]
    turned = np.concatenate([known, np.rot90(known, axes=(1, 2))])
    write_mix(folder / "turned.parquet", turned, np.arange(len(turned)) >= len(known))


def read_mnist(split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images and labels of `train` or `t10k`."""
    return (
        read_array(MNIST / f"{split}-images-idx3-ubyte.gz"),
        read_array(MNIST / f"{split}-labels-idx1-ubyte.gz"),
    )


def write_mix(path: Path, x: NDArray[np.uint8], unusual: NDArray[np.bool_]) -> None:
    """Write rows as bytes, and whether each is unusual."""
    rows = pa.array([row.tobytes() for row in x], pa.binary(x[0].nbytes))
    parquet.write_table(pa.table({"x": rows, "unusual": unusual}), path)


def train_known(folder: Path, seed: int, **settings: Any) -> Path:
    """Train on the known digits and export; return the bundle's folder."""
    import torch  # imported here because limit_spinning must run before

    from pipeline.config import configure
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.export.bundle_export import export_bundle
    from pipeline.model.checkpoint import Checkpoint
    from pipeline.training.loop import train

    torch.set_num_threads(available_cores())
    config = configure("default", data=str(folder / "known.npz"), seed=seed, **settings)
    data = config.data
    rows = load_dataset(
        data.data, valid_fraction=data.valid_fraction, test_fraction=data.test_fraction
    )
    trained = train(rows, config)
    checkpoint = Checkpoint(
        model=trained.model,
        config=config,
        x_dtype=str(rows.train.x.dtype),
        likelihood=trained.model.settings.likelihood,
        data=rows.describe(),
        git={"sha": None, "dirty": None},
        run_id=None,
    )
    metrics = evaluate(trained.model, rows.test.x, nll_samples=1, seed=0)
    bundle = folder / f"known-{seed}"
    export_bundle(bundle, checkpoint, metrics.to_json(), rows.test.x)
    return bundle


def score(folder: Path, name: str, bundle: Path) -> Mapping[str, Any]:
    """Run `vae score` on a mix; return its result."""
    out = folder / f"{name}-{bundle.name}"
    command = [sys.executable, "-m", "pipeline.cli", "score", str(folder / f"{name}.parquet")]
    command += [str(out), "--model", str(bundle), "--id", "unusual", "--report", f"{out}.html"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: Mapping[str, Any] = json.loads(done.stdout)
    return result


def share_draw(bundle: Path, path: Path) -> Mapping[str, NDArray[Any]]:
    """Score the rows of a mix with one draw that they share."""
    engine = Engine(open_bundle(bundle))
    rows = parquet.read_table(path, columns=["x"])["x"].to_pylist()
    x = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), 28, 28)
    draw = draw_rows(0, 0, 1, engine.bundle.manifest.latent_dim)
    return engine.run("score", {"x": x, "eps": np.broadcast_to(draw, (len(x), *draw.shape))})


def find_area(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Return the chance that a positive scores above a negative; ties count half (Mann-Whitney)."""
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]
    hits = int(positive.sum())
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (len(scores) - hits)))


def area_error(area: float, positive: NDArray[np.bool_]) -> float:
    """Return the standard error of an area over rows."""
    hits, others = int(positive.sum()), int((~positive).sum())
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (hits - 1) * (q1 - area**2) + (others - 1) * (q2 - area**2)
    return float(np.sqrt(spread / (hits * others)))


if __name__ == "__main__":
    limit_spinning()
    for line in measure([int(seed) for seed in sys.argv[1:]] or SEEDS):
        print(line, flush=True)
