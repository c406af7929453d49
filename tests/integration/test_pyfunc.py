import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.registry.versions import register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Bundle
from serving.engine import Engine
from tests.trained_models import Trained

pytestmark = [
    pytest.mark.usefixtures("store"),
    # mlflow loads models-from-code by an importlib call that Python 3.11 calls deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning:importlib"),
]


def load_model(bundle: Bundle) -> Any:
    """Load the model as mlflow does, but from a folder instead of a store."""
    from serving.pyfunc_model import BundleModel

    model = BundleModel()
    model.load_context(SimpleNamespace(artifacts={"bundle": str(bundle.path)}))
    return model


@pytest.fixture(scope="module")
def loaded(sealed: Bundle) -> Any:
    return load_model(sealed)


@pytest.fixture
def registered(sealed: Bundle, store: Path) -> str:
    with tracked_run("test") as run:
        return f"models:/vae/{register_bundle(run, sealed, 'vae')}"


def test_predicts_what_the_engine_does(registered: str, sealed: Bundle, trained: Trained) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(registered)
    engine = Engine(sealed)
    x = np.concatenate([trained[1].train.x] * 5)[:1300]  # more than one block of noise
    z = np.random.default_rng(0).standard_normal((9, 3), np.float32)
    expected = {
        "encode": (x, engine.encode(x)),
        "decode": (z, {"x_loc": engine.decode(z)}),
        "reconstruct": (x, {"x_loc": engine.reconstruct(x)}),
        "sample": (x, {"x_loc": engine.sample(len(x), 7)}),
        "score": (x, engine.score(x, 4, 7)),
        "draw": (x, {"x": engine.draw(len(x), 7)}),
    }
    assert expected.keys() == engine.operations.keys()
    for operation, (rows, outputs) in expected.items():
        got = model.predict(rows, params={"operation": operation, "seed": 7, "num_samples": 4})
        assert got.keys() == outputs.keys()
        for name, value in outputs.items():
            assert got[name].tobytes() == value.tobytes(), (operation, name)
    assert model.predict(x)["x_loc"].tobytes() == engine.reconstruct(x).tobytes()
    assert model.predict(x[:0])["x_loc"].shape == (0, 6, 5)
    assert model.predict(x[:0], params={"operation": "sample"})["x_loc"].shape == (0, 6, 5)


def test_more_samples_than_a_block_of_noise(
    registered: str, sealed: Bundle, trained: Trained
) -> None:
    import mlflow

    x = trained[1].test.x[:3]
    got = mlflow.pyfunc.load_model(registered).predict(
        x, params={"operation": "score", "seed": 7, "num_samples": 1025}
    )
    for name, value in Engine(sealed).score(x, 1025, 7).items():
        assert got[name].tobytes() == value.tobytes()


def test_rows_are_the_same_in_every_form(registered: str, sealed: Bundle, trained: Trained) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(registered)
    x = trained[1].test.x[:4]
    flat = x.reshape(4, 30)
    nested = pd.Series([np.array([line.copy() for line in row]) for row in x])
    forms = {
        "float64": x.astype(np.float64),
        "int64": x.astype(np.int64),
        "flat": flat,
        "list": x.tolist(),
        "dict": {"x": x},
        "columns": pd.DataFrame(flat),
        "columns of float64": pd.DataFrame(flat.astype(np.float64)),
        "a column of flat arrays": pd.DataFrame({"x": list(flat)}),
        "a column of lists": pd.DataFrame({"x": [row.tolist() for row in x]}),
        "a column of images": pd.DataFrame({"x": nested}),
    }
    expected = Engine(sealed).reconstruct(x).tobytes()
    for form, rows in forms.items():
        assert model.predict(rows)["x_loc"].tobytes() == expected, form


def test_a_table_is_scored_from_a_data_frame(trained_table: Trained, sealed_table: Bundle) -> None:
    import mlflow

    with tracked_run("test") as run:
        version = register_bundle(run, sealed_table, "table")
    model = mlflow.pyfunc.load_model(f"models:/table/{version}")
    x = trained_table[1].test.x[:6]
    expected = Engine(sealed_table).score(x, 1, 0)
    frame = pd.DataFrame(x, columns=list("abcd"), dtype="float64")
    by_columns = pd.DataFrame({name: frame[name].copy() for name in "abcd"})
    for rows in (x, x.astype(np.float64), frame, by_columns):
        got = model.predict(rows, params={"operation": "score"})
        assert {name: value.tobytes() for name, value in got.items()} == {
            name: value.tobytes() for name, value in expected.items()
        }
    for value in (np.nan, np.inf, 1e39):
        with pytest.raises(ValueError, match="x must be finite in float32"):
            model.predict(np.full((1, 4), value))


BLACK = np.zeros((1, 6, 5), np.uint8)
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "an operation": (BLACK, {"operation": "x"}, "operation must be one of encode, decode, rec"),
    "no samples": (BLACK, {"num_samples": 0}, "num_samples must be from 1 to 4096, got 0"),
    "a seed": (BLACK, {"seed": -1}, "seed must be from 0 to 9223372036854775807, got -1"),
    "a shape": (np.zeros((1, 5, 6), np.uint8), {}, r"x must be \('batch', 6, 5\), got \(1, 5, 6\)"),
    "one image": (BLACK[0], {}, r"x must be \('batch', 6, 5\), got \(6, 5\)"),
    "a fraction": (BLACK + 0.5, {}, "x must be whole numbers from 0 to 255"),
    "a number too large": (BLACK + np.int64(300), {}, "x must be whole numbers from 0 to 255"),
    "a negative number": (BLACK - np.int64(1), {}, "x must be whole numbers from 0 to 255"),
    "a missing value": (BLACK + np.nan, {}, "x must be whole numbers from 0 to 255"),
    "words": (np.full((1, 6, 5), "a"), {}, "x must be uint8, got <U1"),
    "a ragged column": (pd.DataFrame({"x": [[1, 2], [3]]}), {}, "same shape"),
    "two arrays": ({"x": BLACK, "y": BLACK}, {}, "must be one array, got x, y"),
    "latents of another size": (
        np.zeros((1, 4)),
        {"operation": "decode"},
        "z must be .*'batch', 3",
    ),
}


@pytest.mark.parametrize(("rows", "params", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_change_a_value_is_refused(
    loaded: Any, rows: Any, params: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        loaded.predict(None, rows, params)


@pytest.mark.parametrize("name", ["manifest.json", "encoder.onnx", "golden.npz", "MODEL_CARD.md"])
def test_a_changed_file_is_refused_at_load(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}|invalid|codec|delimiter|Expecting"):
        load_model(bundle)


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
    env = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(2, 6, 5)"
