"""What clients send beside the tensors: unknown parameters, null, a slash at the end of a path."""

import json
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc  # type: ignore[import-untyped]
import tritonclient.http as triton_http  # type: ignore[import-untyped]

from serving.engine import Engine
from serving.protocol import open_inference_pb2 as pb
from tests.serving.running import Running
from tests.serving.server.arrays import same
from tests.serving.server.rest_requests import arrays_of, body_of, fill, refused

SAMPLE = "/v2/models/sample/infer"
IGNORED: dict[str, Any] = {
    "triton_enable_empty_final_response": False,
    "priority": 3,
    "sequence_id": 41,
    "sequence_start": True,
    "sequence_end": True,
    "content_type": "np",
    "headers": {"a": ["b"]},
    "sed": 5,
    "of": [1, {"any": "type"}],
}
ALLOWED_BY_TRITONCLIENT = {"content_type": "np", "sed": 5, "flag": True}
"""tritonclient has arguments of its own for the others."""


def test_parameters_of_others_are_ignored(http: httpx.Client, engine: Engine) -> None:
    body = {"parameters": {"seed": 7, "num_samples": 3, **IGNORED}}
    same(arrays_of(http.post(SAMPLE, json=body)), {"x_loc": engine.sample(3, 7)})


@pytest.mark.parametrize("name", IGNORED)
def test_an_unknown_parameter_of_a_tensor_and_an_output_is_ignored(
    http: httpx.Client, engine: Engine, x: np.ndarray, name: str
) -> None:
    parameters = {name: IGNORED[name]}
    tensor = {"name": "x", "datatype": "UINT8", "shape": [1, 6, 5], "parameters": parameters}
    tensor["data"] = x[:1].tolist()
    body = {"inputs": [tensor], "outputs": [{"name": "z_loc", "parameters": parameters}]}
    response = http.post("/v2/models/encode/infer", json=body)
    same(arrays_of(response), {"z_loc": engine.encode(x[:1])["z_loc"]})


@pytest.mark.parametrize("over_http", [True, False], ids=["http", "grpc"])
def test_triton_s_clients_send_parameters(server: Running, engine: Engine, over_http: bool) -> None:
    module: Any = triton_http if over_http else triton_grpc
    address = server.rest.removeprefix("http://") if over_http else server.grpc
    with module.InferenceServerClient(address) as client:
        result = client.infer(
            "sample",
            [],
            sequence_id=41,
            sequence_start=True,
            sequence_end=True,
            priority=2,
            parameters={"seed": 5, "num_samples": 2, **ALLOWED_BY_TRITONCLIENT},
        )
    assert result.as_numpy("x_loc").tobytes() == engine.sample(2, 5).tobytes()


def test_the_stream_parameter_of_perf_analyzer_over_grpc(server: Running, engine: Engine) -> None:
    message = pb.ModelInferRequest(model_name="sample")
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    message.parameters["seed"].int64_param = 9
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        answer = call(message, timeout=20)
    assert answer.raw_output_contents[0] == engine.sample(1, 9).tobytes()


@pytest.mark.parametrize(
    ("parameter", "value", "advice"),
    [
        ("shared_memory_region", "region", "send the tensor in the body"),
        ("shared_memory_byte_size", 30, "send the tensor in the body"),
        ("shared_memory_offset", 8, "send the tensor in the body"),
        ("classification", 3, "ask for the whole output"),
    ],
)
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_what_would_change_the_answer_is_refused_by_name(
    http: httpx.Client, x: np.ndarray, side: str, parameter: str, value: object, advice: str
) -> None:
    entries: dict[str, list[dict[str, Any]]] = {
        "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 6, 5], "data": x[0].tolist()}],
        "outputs": [{"name": "z_loc"}],
    }
    entries[side][0]["parameters"] = {parameter: value}
    text = refused(http.post("/v2/models/encode/infer", json=entries), 400)
    name = entries[side][0]["name"]
    assert text == f"{parameter} of {name} is not supported: {advice}"


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_grpc_refuses_what_would_change_the_answer_by_name(
    server: Running, x: np.ndarray, side: str
) -> None:
    message = pb.ModelInferRequest(model_name="encode")
    message.inputs.add(name="x", datatype="UINT8", shape=[1, 6, 5])
    message.outputs.add(name="z_loc")
    message.raw_input_contents.append(x[0].tobytes())
    entry = getattr(message, side)[0]
    entry.parameters["shared_memory_region"].string_param = "region"
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(message, timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = f"shared_memory_region of {entry.name} is not supported: send the tensor in the body"
    assert caught.value.details() == told


@pytest.mark.parametrize("name", ["seed", "num_samples"])
def test_noise_of_an_operation_without_noise_is_refused(http: httpx.Client, name: str) -> None:
    body, _ = body_of({"z": np.zeros((1, 3), np.float32)}, parameters={name: 1})
    text = refused(http.post("/v2/models/decode/infer", content=body), 400)
    assert text == f"decode draws no noise: it takes no seed, got {name!r}"


NULLS: dict[str, Any] = {
    "id": {"id": None},
    "parameters": {"parameters": None},
    "outputs": {"outputs": None},
    "inputs": {"inputs": None},
    "all": dict.fromkeys(["id", "parameters", "outputs", "inputs", "anything"]),
    "each parameter": {
        "parameters": dict.fromkeys(
            ["seed", "num_samples", "timeout", "binary_data_output", "priority"]
        )
    },
    "of an output": {"outputs": [{"name": "x_loc", "parameters": None, "shape": None}]},
    "binary_data": {"outputs": [{"name": "x_loc", "parameters": {"binary_data": None}}]},
    "classification": {"outputs": [{"name": "x_loc", "parameters": {"classification": None}}]},
}


@pytest.mark.parametrize("case", NULLS)
def test_null_is_absent(http: httpx.Client, engine: Engine, case: str) -> None:
    """Jackson, System.Text.Json and pydantic write it for what is not set."""
    response = http.post(SAMPLE, json=NULLS[case])
    assert "id" not in response.json()
    same(arrays_of(response), {"x_loc": engine.sample(1, 0)})


def test_null_of_an_input_is_absent(http: httpx.Client, engine: Engine, x: np.ndarray) -> None:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [1, 6, 5], "data": x[:1].tolist()}
    for parameters in (None, {"binary_data_size": None, "shared_memory_region": None}):
        body = {"inputs": [{**tensor, "parameters": parameters}]}
        same(arrays_of(http.post("/v2/models/encode/infer", json=body)), engine.encode(x[:1]))


@pytest.mark.parametrize("part", ["name", "datatype", "shape", "data"])
def test_null_of_what_is_required_is_refused(http: httpx.Client, x: np.ndarray, part: str) -> None:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [1, 6, 5], "data": x[:1].tolist()}
    body = {"inputs": [{**tensor, part: None}]}
    assert part in refused(http.post("/v2/models/encode/infer", json=body), 400)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("models/sample/load", {"parameters": None}),
        ("models/sample/load", {"parameters": {"config": None}}),
        ("models/sample/load", {"parameters": {"anything": 1}}),
        ("models/sample/load", None),
        ("models/sample/unload", {"parameters": None}),
        ("models/sample/unload", {"parameters": {"unload_dependents": False}}),
        ("models/sample/unload", None),
        ("index", {"ready": None}),
        ("index", None),
    ],
    ids=str,
)
def test_null_in_the_repository_is_absent(http: httpx.Client, path: str, content: object) -> None:
    try:
        response = http.post(f"/v2/repository/{path}", content=httpx_json(content))
    finally:
        http.post("/v2/repository/models/sample/load")
    assert response.status_code == 200, response.text
    if path == "index":
        assert len(response.json()) == 6


def httpx_json(content: object) -> bytes:
    """Write JSON; httpx itself sends no body for None."""
    return json.dumps(content).encode()


def test_unknown_keys_are_ignored(http: httpx.Client, engine: Engine) -> None:
    """The specification names no such key, and leaves room for those of extensions."""
    body = {"parameters": {"seed": 2}, "model_name": "sample", "extension": {"a": 1}}
    same(arrays_of(http.post(SAMPLE, json=body)), {"x_loc": engine.sample(1, 2)})


@pytest.mark.parametrize(
    "path",
    [
        "/v2/",
        "/v2/health/live/",
        "/v2/health/ready/",
        "/v2/models/sample/",
        "/v2/models/sample/versions/{version}/",
        "/v2/models/sample/ready/",
        "/v2/models/sample/config/",
        "/openapi.json/",
        "/docs/",
    ],
)
def test_a_slash_at_the_end_of_a_path_changes_nothing(
    http: httpx.Client, server: Running, path: str
) -> None:
    path = fill(path, server)
    with_slash, without = http.get(path), http.get(path.rstrip("/"))
    assert (with_slash.status_code, with_slash.content) == (200, without.content)


def test_a_slash_at_the_end_of_a_post(http: httpx.Client, engine: Engine) -> None:
    body = {"parameters": {"seed": 4}}
    response = http.post(f"{SAMPLE}/", json=body, follow_redirects=False)
    same(arrays_of(response), {"x_loc": engine.sample(1, 4)})
    assert len(http.post("/v2/repository/index/").json()) == 6


def test_a_long_error_is_cut(http: httpx.Client) -> None:
    long = "s" * 50_000
    for response in (
        http.post(SAMPLE, json={"parameters": {"seed": long}}),
        http.post(SAMPLE, json={"outputs": [{"name": long}]}),
        http.get(f"/v2/models/{long}"),
        http.get(f"/{long}"),
        http.delete(f"/v2/models/{long}"),
    ):
        assert response.status_code in (400, 404, 405)
        assert len(response.json()["error"]) < 310
