"""The main job in a folder with an odd name; a version for a user without a home."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import TINY, VAE, clean_environment, draw_images, run_vae
from tests.serving.test_user_folders import NOBODY, namespaces

ODD = "50% off #1 ü+a&b"


@pytest.mark.slow(40)
def test_every_printed_path_of_a_folder_with_an_odd_name_exists(tmp_path: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    np.save(folder / "x ü#.npy", draw_images(300))
    arguments = ("--data", "x ü#.npy", "--epochs", "1", "--out", "b ü%#", *TINY)
    unjudged = ("--min-active-units", "0")  # after one epoch no latent is active yet
    result = run_vae(folder, "run", *arguments, *unjudged, XDG_CACHE_HOME=str(folder / "cache"))
    assert result.returncode == 0, result.stderr
    (pictures,) = [line for line in result.stderr.splitlines() if line.startswith("  pictures")]
    place = Path(pictures.removeprefix("  pictures").strip())
    assert place.parent.parent.parent == folder / "mlartifacts" / "vae"
    assert {path.name for path in place.iterdir()} >= {"samples.png", "reconstructions.png"}
    assert (folder / json.loads(result.stdout)["bundle"] / "manifest.json").exists()
    uri = f"sqlite:///{folder}/mlflow.db"
    for words in (
        ("verify",),
        ("verify", f"{ODD}/b ü%#"),
        ("sample", "--count", "2", "--out", "s ü%#.npy"),
        ("evaluate", f"{ODD}/b ü%#", "--nll-samples", "2"),
        ("deploy", "--target", "triton", "--out", "d ü%#"),
    ):
        done = run_vae(tmp_path, *words, MLFLOW_TRACKING_URI=uri)
        assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "s ü%#.npy").shape == (2, 6, 5)
    assert not list(tmp_path.glob("*%25*"))


@pytest.mark.slow(20)
def test_a_user_without_a_name_and_a_home_uses_a_version(made: Path, tmp_path: Path) -> None:
    if not namespaces():
        pytest.skip("a user cannot be another one here")
    env = clean_environment(tmp_path, {"MLFLOW_TRACKING_URI": f"sqlite:///{made}/mlflow.db"})
    for variable in ("HOME", "XDG_CACHE_HOME"):
        env.pop(variable, None)
    (tmp_path / "tmp").mkdir()
    env |= {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*NOBODY, *VAE, "sample", "--count", "2", "--out", str(tmp_path / "s.npy")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    home = tmp_path / "tmp" / "vae-pipeline-12345"
    assert done.stderr == (
        f"this user has no home folder: using {home}; "
        "set HOME to a folder that this user can write to\n"
    )
    assert np.load(tmp_path / "s.npy").shape == (2, 6, 5)
