import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.registry import register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Bundle
from serving.engine import Engine
from tests.pipeline.conftest import Trained

pytestmark = [
    pytest.mark.usefixtures("store"),
    # mlflow loads models-from-code by an importlib call that Python 3.11 calls deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning:importlib"),
]


@pytest.fixture
def registered(sealed: Bundle, store: Path) -> str:
    with tracked_run("test") as run:
        return f"models:/vae/{register_bundle(run, sealed, 'vae')}"


def test_predicts_what_the_engine_does(registered: str, sealed: Bundle, trained: Trained) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(registered)
    engine = Engine(sealed)
    x = np.concatenate([trained[1].train.x] * 5)[:1300]  # more than one block of noise
    expected = {
        "encode": engine.encode(x),
        "reconstruct": {"x_loc": engine.reconstruct(x)},
        "sample": {"x_loc": engine.sample(len(x), 7)},
        "score": engine.score(x, 4, 7),
    }
    for operation, outputs in expected.items():
        got = model.predict(x, params={"operation": operation, "seed": 7, "num_samples": 4})
        assert got.keys() == outputs.keys()
        for name, value in outputs.items():
            assert got[name].tobytes() == value.tobytes(), (operation, name)
    assert model.predict(x)["x_loc"].tobytes() == engine.reconstruct(x).tobytes()


def test_more_draws_than_a_block_of_noise(
    registered: str, sealed: Bundle, trained: Trained
) -> None:
    import mlflow

    x = trained[1].test.x[:3]
    got = mlflow.pyfunc.load_model(registered).predict(
        x, params={"operation": "score", "seed": 7, "num_samples": 1025}
    )
    for name, value in Engine(sealed).score(x, 1025, 7).items():
        assert got[name].tobytes() == value.tobytes()


def test_an_unknown_operation_and_a_wrong_shape_are_refused(registered: str) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(registered)
    with pytest.raises(ValueError, match="operation must be encode, reconstruct, sample or score"):
        model.predict(np.zeros((1, 6, 5), np.uint8), params={"operation": "x"})
    with pytest.raises(ValueError, match="num_samples must be from 1 to 4096, got 0"):
        model.predict(
            np.zeros((1, 6, 5), np.uint8), params={"operation": "score", "num_samples": 0}
        )
    with pytest.raises(mlflow.exceptions.MlflowException, match="Shape of input"):
        model.predict(np.zeros((1, 5, 6), np.uint8))


def test_loads_without_pickle_torch_or_this_package(registered: str, tmp_path: Path) -> None:
    code = f"""
import sys, numpy, warnings
warnings.simplefilter("error", UserWarning)
warnings.filterwarnings("ignore", ".*Any type hint")
sys.modules["torch"] = None
import mlflow
model = mlflow.pyfunc.load_model({registered!r})
out = model.predict(numpy.zeros((2, 6, 5), numpy.uint8))
assert "pipeline" not in sys.modules and "serving" not in sys.modules
print(out["x_loc"].shape)
"""
    import os

    env = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(2, 6, 5)"
