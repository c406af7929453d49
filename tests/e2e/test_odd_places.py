"""Training where the locale is not UTF-8, or nothing can be written."""

import json
from pathlib import Path

import numpy as np
import pytest

from serving.errors import UsageRefused, VaeError
from tests.serving.places import (
    ALL_READ_ONLY,
    ASCII,
    inside,
    needs_mounts,
    run,
)

TINY = "--epochs 1 --hidden-dims 8 --latent-dim 2 --threads 1 --nll-samples 2".split()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a table, whose names are not ASCII."""
    folder = tmp_path / "ü é"
    folder.mkdir()
    rows = np.random.default_rng(0).standard_normal((200, 2))
    lines = [f"{a:.3f},{b:.3f}" for a, b in rows]
    (folder / "größe.csv").write_text("\n".join(["größe,höhe", *lines, ""]), encoding="utf-8")
    return folder


def test_a_model_is_trained_where_the_locale_is_ascii(place: Path) -> None:
    done = run(place, (), ASCII, "train", "--data", "größe.csv", *TINY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["run_id"]
    assert (place / "mlflow.db").exists()


def test_a_deleted_working_folder_is_said_before_training(place: Path) -> None:
    gone = inside('mkdir gone; cd gone; rmdir "$PWD";')
    done = run(place, gone, {}, "train", "--data", str(place / "größe.csv"), *TINY)
    assert (done.returncode, done.stdout) == (UsageRefused.exit_code, "")
    assert done.stderr == "error: the working folder was deleted: change to another\n"


@needs_mounts
def test_a_machine_without_a_writable_folder_is_said(place: Path) -> None:
    done = run(place, ALL_READ_ONLY, {}, "train", "--data", str(place / "größe.csv"), *TINY)
    assert (done.returncode, done.stdout) == (VaeError.exit_code, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert line.endswith("; name one in TMPDIR")
    assert "Traceback" not in done.stderr
    assert len(line) < 300
