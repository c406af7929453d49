"""A training on streamed rows that is killed at random equals one that was not."""

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from serving.mlflow_store import connect
from tests.pipeline.training.processes import Interruption, run_content, vae_train
from tests.trained_models import draw_table

KILL = signal.SIGKILL
STEPS = 12
"""Steps in an epoch of the 540 training rows."""
SETTINGS = (
    *("--epochs", 3, "--patience", 9, "--hidden-dims", "16", "--latent-dim", 2),
    *("--batch-size", 45, "--test-fraction", 0.25, "--nll-samples", 4, "--memory", "40kB"),
)


def run_ids() -> set[str]:
    return {str(run.info.run_id) for run in connect().search_runs(["1"])}


def draw_wide(rows: int) -> np.ndarray:
    return np.hstack([draw_table(rows)] * 5)


def save_npy(folder: Path) -> Path:
    np.save(folder / "x.npy", draw_wide(800))
    return folder / "x.npy"


def save_parquet(folder: Path) -> Path:
    """Write two files of row groups of 25 rows."""
    (folder / "x").mkdir()
    names = [f"c{column}" for column in range(20)]
    for number, part in enumerate(np.split(draw_wide(800), 2)):
        table = pa.table(dict(zip(names, part.T, strict=True)))
        parquet.write_table(table, folder / "x" / f"{number}.parquet", row_group_size=25)
    return folder / "x"


@pytest.mark.slow(40)
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("save", "told"),
    [
        pytest.param(save_npy, "shuffle: each epoch in a new order of all rows", id="mapped"),
        pytest.param(save_parquet, "rows are permuted in windows of at most 56,", id="blocks"),
    ],
)
def test_a_streamed_training_that_is_killed_in_epochs_ends_as_if_it_were_not(
    save: Callable[[Path], Path], told: str, tmp_path: Path
) -> None:
    """It is killed at a random step of each epoch; the last state is that of the step before."""
    data = save(tmp_path)
    whole = vae_train(tmp_path, "--data", data, *SETTINGS)
    assert whole.exit_code == 0, whole.stderr
    assert any(line.startswith(told) for line in whole.stderr)
    (first,) = run_ids()
    expected = run_content(first, tmp_path / "expected")
    assert [step for step, _ in expected["metrics"]["valid_elbo"]] == [1, 2, 3]
    arguments: tuple[object, ...] = ("--data", data, *SETTINGS)
    before = 0
    for epoch, step in enumerate(np.random.default_rng(7).integers(2, STEPS + 1, 3)):
        killed = epoch * STEPS + int(step)
        by = Interruption((KILL,), step=killed - before, save_always=True)
        ended = vae_train(tmp_path, *arguments, interruption=by)
        assert ended.exit_code == -KILL, ended.stderr
        if epoch:
            assert f"resuming in epoch {epoch}, after {before} steps" in ended.stderr
        (run_id,) = run_ids() - {first}
        arguments, before = ("--resume", run_id), killed - 1
    last = vae_train(tmp_path, *arguments)
    assert last.exit_code == 0, last.stderr
    assert f"resuming in epoch 3, after {before} steps" in last.stderr
    assert run_content(run_id, tmp_path / "content") == expected
