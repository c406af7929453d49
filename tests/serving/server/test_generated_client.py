"""A client that openapi-python-client generates from the OpenAPI document works."""

import io
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from serving.engine import Engine
from tests.serving.running import Running
from tests.serving.server.rest_requests import LENGTH, NAMES, body_of


@pytest.fixture(scope="module", autouse=True)
def generated(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put the generated package on the path."""
    folder = tmp_path_factory.mktemp("generated")
    config = folder / "config.yaml"
    config.write_text("post_hooks: []\n")  # by default it formats the code
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"]
    options = [
        "--meta",
        "none",
        "--output-path",
        f"{folder / 'v2_client'}",
        "--config",
        f"{config}",
    ]
    url = f"{server.rest}/openapi.json"
    subprocess.run([*command, "--url", url, *options], check=True, timeout=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture
def models(generated: None) -> Any:
    return import_module("v2_client.models")


@pytest.fixture
def client(server: Running, generated: None) -> Iterator[Any]:
    with import_module("v2_client").Client(server.rest) as client:
        yield client


def call(name: str, *arguments: object, **options: object) -> Any:
    """Call an operation of the document."""
    return import_module(f"v2_client.api.default.{name}").sync_detailed(*arguments, **options)


def outputs_of(answer: Any) -> dict[str, bytes]:
    return {
        output.name: np.array(output.data, np.float32).reshape(output.shape).tobytes()
        for output in answer.parsed.outputs
    }


def test_it_infers_in_json(
    models: Any, client: Any, server: Running, engine: Engine, x: np.ndarray
) -> None:
    tensor = models.InferInput(
        name=models.InferInputName.X,
        shape=[2, 6, 5],
        datatype=models.InferInputDatatype.UINT8,
        data=x[:2].tolist(),
    )
    parameters = models.InferParameters(seed=7, num_samples=4)
    body = models.InferRequest(inputs=[tensor], parameters=parameters)
    answer = call("post_v2_models_name_infer", models.Operation.SCORE, client=client, body=body)
    assert answer.parsed.model_version == server.version
    expected = engine.score(x[:2], 4, 7)
    assert outputs_of(answer) == {name: array.tobytes() for name, array in expected.items()}


def test_it_sends_binary(
    models: Any, client: Any, server: Running, engine: Engine, x: np.ndarray
) -> None:
    content, headers = body_of({"x": x[:3]}, ["x"])
    answer = call(
        "post_v2_models_name_versions_version_infer",
        models.Operation.ENCODE,
        server.version,
        client=client,
        body=import_module("v2_client.types").File(payload=io.BytesIO(content)),
        inference_header_content_length=int(headers[LENGTH]),
    )
    expected = engine.encode(x[:3])
    assert outputs_of(answer) == {name: array.tobytes() for name, array in expected.items()}


def test_it_reads_errors(models: Any, client: Any) -> None:
    body = models.InferRequest(inputs=[])
    answer = call("post_v2_models_name_infer", models.Operation.ENCODE, client=client, body=body)
    assert (answer.status_code, answer.parsed.error) == (400, "encode takes x, got none")


def test_it_reads_every_other_answer(models: Any, client: Any, server: Running) -> None:
    encode = models.Operation.ENCODE
    assert call("get_v2_health_live", client=client).parsed.live is True
    assert call("get_v2_health_ready", client=client).parsed.version == server.version
    assert call("get_v2", client=client).parsed.name == "vae-pipeline"
    assert call("get_v2_models_name_ready", encode, client=client).parsed.ready is True
    metadata = call("get_v2_models_name", encode, client=client).parsed
    assert [tensor.shape for tensor in metadata.inputs] == [[-1, 6, 5]]
    config = call("get_v2_models_name_config", encode, client=client).parsed
    assert config.max_batch_size == 4096
    statistics = call("get_v2_models_stats", client=client).parsed
    assert [entry["name"] for entry in statistics.model_stats] == [*NAMES]
    index = call("post_v2_repository_index", client=client).parsed
    assert [model.name for model in index] == [*NAMES]
    assert call("post_v2_repository_models_name_load", encode, client=client).status_code == 200
    assert "vae_requests_total" in call("get_metrics", client=client).parsed
