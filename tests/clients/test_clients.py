"""Clients in other languages, as a user would write them, have Python's answers."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engine import Engine
from serving.noise import MAX_SEED, draw_eps, draw_rows
from tests.serving.running import serve
from tests.trained_models import Trained

Array = NDArray[Any]
HERE = Path(__file__).parent
NODE = f"{sys.prefix}/bin/node"
WEB = Path(sys.prefix, "web", "node_modules")
DATATYPES = {"uint8": "UINT8", "float32": "FP32"}


@pytest.fixture(params=["images", "table"])
def model(request: pytest.FixtureRequest) -> tuple[Bundle, Array]:
    """A bundle, and held-out rows of its model."""
    kind = "" if request.param == "images" else "_table"
    sealed: Bundle = request.getfixturevalue(f"sealed{kind}")
    trained: Trained = request.getfixturevalue(f"trained{kind}")
    return sealed, trained[1].test.x[:9]


def run(*command: object, cwd: Path) -> None:
    assert shutil.which(str(command[0])), f"this test needs {command[0]}: see .ci/run"
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def read(path: Path) -> NDArray[np.float32]:
    return np.fromfile(path, "<f4")


@pytest.mark.parametrize("seed", [0, 7, MAX_SEED])
def test_onnxruntime_web_needs_the_bundle_alone(
    model: tuple[Bundle, Array], tmp_path: Path, seed: int
) -> None:
    """Its noise is Python's, bit for bit; its results are within the budgets of the self-check."""
    bundle, x = model
    engine, golden = Engine(bundle), bundle.golden()
    (tmp_path / "rows.bin").write_bytes(x.tobytes())
    shutil.copy(HERE / "bundle.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(WEB)
    run(NODE, "bundle.mjs", bundle.path, seed, "rows.bin", ".", cwd=tmp_path)
    latent_dim = bundle.manifest.latent_dim
    assert read(tmp_path / "eps.bin").tobytes() == draw_rows(seed, 0, 1000, latent_dim).tobytes()
    row_eps = draw_eps(x, seed, 2, latent_dim)
    assert read(tmp_path / "row_eps.bin").tobytes() == row_eps.tobytes()
    for name, expected, budget in (
        ("samples", engine.sample(1000, seed), golden["sample.x_loc.budget"]),
        ("x_loc", engine.reconstruct(x), golden["reconstruct.x_loc.budget"]),
        ("elbo", engine.score(x, 2, seed)["elbo"], golden["score.elbo.budget"]),
    ):
        found = read(tmp_path / f"{name}.bin")
        assert found.shape == (expected.size,)
        assert np.abs(found - expected.ravel()).max() <= 2 * budget, name


@pytest.mark.parametrize("client", ["node", "java"])
def test_a_client_of_the_server_gets_python_s_bytes(
    model: tuple[Bundle, Array], tmp_path: Path, client: str
) -> None:
    bundle, x = model
    engine, seed = Engine(bundle), 7
    (tmp_path / "rows.bin").write_bytes(x.tobytes())
    program = [NODE, HERE / "rest.mjs"] if client == "node" else ["java", HERE / "Rest.java"]
    shape = ",".join(map(str, x.shape))
    with serve(tmp_path, bundle.path) as running:
        what = (running.rest, seed, "rows.bin", DATATYPES[str(x.dtype)], shape, ".")
        run(*program, *what, cwd=tmp_path)
    scores = engine.score(x, 2, seed)
    for name, arrays in (
        ("sample", [engine.sample(5, seed)]),
        ("reconstruct", [engine.reconstruct(x)]),
        ("score", list(scores.values())),
    ):
        expected = b"".join(array.tobytes() for array in arrays)
        assert (tmp_path / f"{name}.bin").read_bytes() == expected, name
