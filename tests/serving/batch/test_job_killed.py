"""`vae score` in a process of its own, which is killed at any point of its work."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from serving.engine import Engine
from tests.serving.batch.jobs import ROWS, names, read, run
from tests.serving.conftest import SEALED

pytestmark = pytest.mark.usefixtures("small_parts")
ROOT = Path(__file__).parents[3]


def start(last: int, source: Path, output: Path) -> "subprocess.CompletedProcess[str]":
    options = ["--id", "id", "--num-samples", "4", "--seed", "7", "--model", str(SEALED)]
    command = [
        sys.executable,
        "-m",
        "tests.serving.batch.killed",
        str(last),
        str(source),
        str(output),
    ]
    command += [*options, "--batch-size", "64"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_job_that_is_killed_anywhere_is_taken_up_where_it_was(
    engine: Engine, whole: pa.Table, batch_data: Path, tmp_path: Path
) -> None:
    """At four points here; `make bench` takes twenty, over more rows."""
    source = batch_data / "x.parquet"
    undisturbed = start(0, source, tmp_path / "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr
    calls, *heavy = undisturbed.stderr.splitlines()[-1].split()
    assert heavy == []
    assert json.loads(undisturbed.stdout)["rows"] == ROWS
    assert read(tmp_path / "whole").equals(whole)

    shares = (0.02, *np.random.default_rng().uniform(0.05, 0.9, 3))
    for share in shares:
        output = tmp_path / f"{share}"
        killed = start(max(1, int(share * int(calls))), source, output)
        assert killed.returncode == -signal.SIGKILL
        assert not (output / "_SUCCESS").exists()
        run(engine, source, output)
        assert read(output).equals(whole), share
        assert names(output) == names(tmp_path / "whole")
