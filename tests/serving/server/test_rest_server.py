"""REST against a running server: every route, with the engine's own bytes as the reference."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from serving import errors
from serving.engine import Engine
from serving.noise import draw_rows
from serving.operations import Operation, Tensor
from serving.protocol.messages import DATATYPES
from serving.server.auth import Access
from serving.server.batching import Batcher
from serving.server.rest_messages import Limits
from serving.server.rest_routes import ROUTES
from serving.server.rest_server import RestServer
from serving.server.service import LoadedVersion, Service
from serving.server.shared_counters import SharedCounters
from serving.server.tracing import Tracer
from tests.serving.running import Running

NAMES = ("encode", "decode", "reconstruct", "sample", "score")
LENGTH = "inference-header-content-length"
Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.rest, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def inputs(x: np.ndarray) -> Mapping[str, Arrays]:
    """Inputs of each operation, noise included."""
    z = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    eps = np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float32)
    return {
        "encode": {"x": x[:5]},
        "decode": {"z": z},
        "reconstruct": {"x": x[:5]},
        "sample": {"eps": z},
        "score": {"x": x[:5], "eps": eps},
    }


def body_of(
    arrays: Arrays, binary: Sequence[str] = (), **content: Any
) -> tuple[bytes, dict[str, str]]:
    """An infer request, as the specification writes it: those named in `binary` after the JSON."""
    tensors, tail = [], b""
    for name, array in arrays.items():
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[array.dtype],
            "shape": list(array.shape),
        }
        if name in binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            tensor["data"] = array.reshape(-1).tolist()
        tensors.append(tensor)
    head = json.dumps({"inputs": tensors, **content}).encode()
    return head + tail, {LENGTH: str(len(head))} if binary else {}


def arrays_of(response: httpx.Response) -> dict[str, np.ndarray]:
    """Outputs of an answer, JSON or binary, in its order."""
    assert response.status_code == 200, response.text
    length = response.headers.get(LENGTH)
    head = response.content[: None if length is None else int(length)]
    tail = response.content[len(head) :]
    arrays = {}
    for output in json.loads(head)["outputs"]:
        dtype = {"FP32": "<f4", "UINT8": "u1"}[output["datatype"]]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(output["data"], dtype)
        else:
            assert "data" not in output
            array, tail = np.frombuffer(tail[:size], dtype), tail[size:]
        arrays[output["name"]] = array.reshape(output["shape"])
    assert tail == b""
    return arrays


def refused(response: httpx.Response, status: int) -> str:
    """Text of a refusal, which is always {"error": text}."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert content.keys() == {"error"}
    assert isinstance(content["error"], str)
    return str(content["error"])


def same(got: Arrays, expected: Arrays) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name


def fill(path: str, server: Running, name: str = "sample") -> str:
    return path.replace("{name}", name).replace("{version}", server.version)


@pytest.mark.parametrize("place", ["", "/versions/{version}"], ids=["unversioned", "versioned"])
@pytest.mark.parametrize("binary_output", [False, True], ids=["json out", "binary out"])
@pytest.mark.parametrize("binary_input", [False, True], ids=["json in", "binary in"])
@pytest.mark.parametrize("operation", NAMES)
def test_every_operation_gives_the_engine_s_bytes(
    http: httpx.Client,
    server: Running,
    engine: Engine,
    inputs: Mapping[str, Arrays],
    operation: str,
    binary_input: bool,
    binary_output: bool,
    place: str,
) -> None:
    arrays = inputs[operation]
    parameters = {"binary_data_output": binary_output}
    body, headers = body_of(arrays, list(arrays) if binary_input else [], parameters=parameters)
    address = fill(f"/v2/models/{operation}{place}/infer", server)
    response = http.post(address, content=body, headers=headers)
    same(arrays_of(response), engine.run(operation, arrays))
    assert (LENGTH in response.headers) == binary_output
    kind = "application/octet-stream" if binary_output else "application/json"
    assert response.headers["content-type"] == kind


def test_an_answer_says_model_version_and_tensors_and_no_more(
    http: httpx.Client, server: Running, engine: Engine, x: np.ndarray
) -> None:
    body, _ = body_of({"x": x[:2]}, id="41")
    content = http.post("/v2/models/encode/infer", content=body).json()
    expected = engine.encode(x[:2])
    assert content == {
        "model_name": "encode",
        "model_version": server.version,
        "id": "41",
        "outputs": [
            {
                "name": name,
                "datatype": "FP32",
                "shape": [2, 3],
                "data": [float(str(value)) for value in array.reshape(-1)],
            }
            for name, array in expected.items()
        ],
    }


def test_an_id_that_was_not_given_is_not_answered(http: httpx.Client) -> None:
    assert "id" not in http.post("/v2/models/sample/infer", json={}).json()


def test_nested_data_is_row_major(http: httpx.Client, engine: Engine, x: np.ndarray) -> None:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [2, 6, 5], "data": x[:2].tolist()}
    response = http.post("/v2/models/encode/infer", json={"inputs": [tensor]})
    same(arrays_of(response), engine.encode(x[:2]))


@pytest.mark.parametrize("binary", ["x", "eps"])
def test_one_input_is_json_and_one_binary(
    http: httpx.Client, engine: Engine, inputs: Mapping[str, Arrays], binary: str
) -> None:
    body, headers = body_of(inputs["score"], [binary])
    response = http.post("/v2/models/score/infer", content=body, headers=headers)
    same(arrays_of(response), engine.run("score", inputs["score"]))


@pytest.mark.parametrize("default", [False, True], ids=["else json", "else binary"])
def test_an_output_s_own_choice_of_binary_wins(
    http: httpx.Client, engine: Engine, x: np.ndarray, default: bool
) -> None:
    outputs = [
        {"name": "z_scale", "parameters": {"binary_data": not default}},
        {"name": "z_loc"},
    ]
    parameters = {"binary_data_output": default}
    body, _ = body_of({"x": x[:3]}, outputs=outputs, parameters=parameters)
    response = http.post("/v2/models/encode/infer", content=body)
    expected = engine.encode(x[:3])
    same(arrays_of(response), {name: expected[name] for name in ("z_scale", "z_loc")})
    head = json.loads(response.content[: int(response.headers[LENGTH])])
    found = {output["name"]: "data" in output for output in head["outputs"]}
    assert found == {"z_scale": default, "z_loc": not default}


@pytest.mark.parametrize("names", [["kl"], ["iw_elbo", "elbo"], ["elbo", "iw_elbo"]], ids=str)
def test_requested_outputs_come_alone_and_in_order(
    http: httpx.Client, engine: Engine, x: np.ndarray, names: list[str]
) -> None:
    body, _ = body_of(
        {"x": x[:3]}, outputs=[{"name": name} for name in names], parameters={"seed": 5}
    )
    expected = engine.score(x[:3], 1, 5)
    got = arrays_of(http.post("/v2/models/score/infer", content=body))
    same(got, {name: expected[name] for name in names})


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_a_raw_body_is_the_first_tensor(
    http: httpx.Client, engine: Engine, x: np.ndarray, rows: int
) -> None:
    response = http.post(
        "/v2/models/encode/infer", content=x[:rows].tobytes(), headers={LENGTH: "0"}
    )
    assert LENGTH in response.headers
    same(arrays_of(response), engine.encode(x[:rows]))


def test_a_raw_body_of_part_of_a_row_is_refused(http: httpx.Client) -> None:
    response = http.post("/v2/models/encode/infer", content=b"0" * 31, headers={LENGTH: "0"})
    assert refused(response, 400) == "a row of x has 30 bytes, got a body of 31"


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_whole_floats_stand_for_bytes(
    http: httpx.Client, engine: Engine, x: np.ndarray, binary: bool
) -> None:
    body, headers = body_of({"x": x[:4].astype(np.float32)}, ["x"] if binary else [])
    response = http.post("/v2/models/encode/infer", content=body, headers=headers)
    same(arrays_of(response), engine.encode(x[:4]))


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, np.nan, np.inf], ids=str)
def test_a_float_that_is_no_byte_is_refused(
    http: httpx.Client, x: np.ndarray, value: float
) -> None:
    array = x[:2].astype(np.float32)
    array[1, 2, 3] = value
    body, headers = body_of({"x": array}, ["x"])
    response = http.post("/v2/models/encode/infer", content=body, headers=headers)
    assert refused(response, 400) == f"x must be whole numbers from 0 to 255, got {value}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_input_that_is_not_finite_is_refused(http: httpx.Client, value: float) -> None:
    z = np.zeros((3, 3), np.float32)
    z[1, 1] = value
    body, headers = body_of({"z": z}, ["z"])
    response = http.post("/v2/models/decode/infer", content=body, headers=headers)
    assert refused(response, 400) == "z must be finite, row 1 is not"


def test_bytes_do_not_stand_for_floats(http: httpx.Client) -> None:
    body, _ = body_of({"z": np.zeros((2, 3), np.uint8)})
    response = http.post("/v2/models/decode/infer", content=body)
    assert refused(response, 400) == "datatype of z must be FP32, got UINT8"


@pytest.mark.parametrize(
    ("operation", "content", "text"),
    [
        ("sample", {"parameters": {"sed": 1}}, "got 'sed'"),
        ("encode", {"parameters": {"seed": 1}}, "got 'seed'"),
        ("sample", {"parameters": {"seed": -1}}, "seed must be a whole number, at least 0, got -1"),
        ("sample", {"parameters": {"seed": 2**63}}, f"seed must be from 0 to {2**63 - 1}"),
        ("sample", {"parameters": {"seed": 1.0}}, "seed must be a whole number"),
        ("sample", {"parameters": {"seed": True}}, "seed must be a whole number"),
        ("sample", {"parameters": {"num_samples": 0}}, "num_samples must be a whole number from 1"),
        ("sample", {"parameters": {"num_samples": 4097}}, "num_samples must be at most 4096"),
        (
            "sample",
            {"parameters": {"timeout": -1}},
            "timeout must be whole microseconds, at least 0, got",
        ),
        (
            "sample",
            {"parameters": {"timeout": "1"}},
            "timeout must be whole microseconds, at least 0, got",
        ),
        ("sample", {"parameters": []}, "parameters of the request must be a JSON object, got list"),
        ("sample", {"parameters": {"binary_data_output": 1}}, "must be true or false, got 1"),
        ("sample", {"id": 3}, "id must be text, got 3"),
        ("sample", {"outputs": [{"name": "y"}]}, "sample gives x_loc, got 'y'"),
        ("encode", {}, "encode takes x, got none"),
        ("score", {"parameters": {"seed": 1}}, "score takes x, and eps or a seed for it, got none"),
        ("encode", {"inputs": {"x": 1}}, "inputs must be a list, got dict"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_what_a_request_may_not_say(
    http: httpx.Client, operation: str, content: dict[str, Any], text: str
) -> None:
    assert text in refused(http.post(f"/v2/models/{operation}/infer", json=content), 400)


def test_noise_and_a_seed_exclude_each_other(
    http: httpx.Client, inputs: Mapping[str, Arrays]
) -> None:
    body, _ = body_of(inputs["score"], parameters={"seed": 1, "num_samples": 2})
    response = http.post("/v2/models/score/infer", content=body)
    assert refused(response, 400) == "eps and num_samples, seed exclude each other"


def test_rows_times_draws_are_bounded(http: httpx.Client, x: np.ndarray) -> None:
    body, _ = body_of({"x": x[:3]}, parameters={"num_samples": 1366})
    text = refused(http.post("/v2/models/score/infer", content=body), 400)
    assert text == "a request may hold 4096 rows times draws, got 4098: send several"


@pytest.mark.parametrize(
    "length", ["1", "-1", "x", "", "+1", "1_0", "999", "9" * 5000], ids=lambda t: t[:5]
)
def test_a_header_length_that_does_not_fit_is_refused(http: httpx.Client, length: str) -> None:
    response = http.post("/v2/models/sample/infer", content=b"{}", headers={LENGTH: length})
    refused(response, 400)


@pytest.mark.parametrize("sizes", [[0, 2**63, 1], [0, 2**62, 2**62]], ids=str)
@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_an_empty_tensor_with_a_huge_axis_is_refused(
    http: httpx.Client, sizes: list[int], binary: bool
) -> None:
    content: dict[str, Any] = {"data": []}
    if binary:
        content = {"parameters": {"binary_data_size": 0}}
    tensor = {"name": "x", "datatype": "UINT8", "shape": sizes, **content}
    refused(http.post("/v2/models/encode/infer", json={"inputs": [tensor]}), 400)


def test_a_body_with_a_content_encoding_is_refused(http: httpx.Client) -> None:
    response = http.post(
        "/v2/models/sample/infer", content=b"{}", headers={"content-encoding": "gzip"}
    )
    assert "content-encoding" in refused(response, 400)


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("POST", "/v2/models/sample/versions/41/infer", "sample is served in version"),
        ("POST", "/v2/models/nope/infer", "no model 'nope': there are encode, decode"),
        ("POST", "/v2/models/nope/versions/{version}/infer", "no model 'nope'"),
        ("GET", "/v2/models/nope", "no model 'nope'"),
        ("GET", "/v2/models/sample/versions/41", "not '41'"),
        ("GET", "/v2/models/nope/ready", "no model 'nope'"),
        ("GET", "/v2/models/sample/versions/41/ready", "not '41'"),
        ("GET", "/v2/models/nope/config", "no model 'nope'"),
        ("GET", "/v2/models/sample/versions/41/config", "not '41'"),
        ("GET", "/v2/models/nope/stats", "no model 'nope'"),
        ("GET", "/v2/models/sample/versions/41/stats", "not '41'"),
        ("POST", "/v2/repository/models/nope/load", "no model 'nope'"),
        ("POST", "/v2/repository/models/nope/unload", "no model 'nope'"),
        ("GET", "/", "no path '/': see /docs"),
        ("GET", "/v2/", "no path '/v2/'"),
        ("GET", "/v2/models/a/b/c", "no path"),
        ("POST", "/v2/models/sample/infer/", "no path"),
    ],
)
def test_what_is_not_there_is_404(
    http: httpx.Client, server: Running, method: str, path: str, text: str
) -> None:
    assert text in refused(http.request(method, fill(path, server)), 404)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_another_method_is_405(http: httpx.Client, server: Running, route: Any) -> None:
    path = fill(route.path, server)
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - {route.method}:
        response = http.request(method, path)
        assert refused(response, 405) == f"{path} takes {route.method}, got {method}"


@pytest.mark.parametrize(("path", "method"), [("/v2", "GET"), ("/v2/repository/index", "POST")])
def test_405_names_what_is_allowed(http: httpx.Client, path: str, method: str) -> None:
    """RFC 9110, section 15.5.6: the origin server MUST generate an Allow header field."""
    response = http.delete(path)
    allowed = {name.strip() for name in response.headers.get("allow", "").split(",")}
    assert allowed - {"HEAD"} == {method}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_answers(http: httpx.Client, server: Running, route: Any) -> None:
    path = fill(route.path, server)
    try:
        response = http.request(route.method, path, content=b"{}" if "infer" in path else b"")
    finally:
        http.post("/v2/repository/models/sample/load")
    assert response.status_code == (202 if "webhooks" in path else 200), response.text


@pytest.mark.parametrize(
    "path", [route.path for route in ROUTES if route.method == "GET" and route.path != "/metrics"]
)
def test_head_is_get_without_the_body(http: httpx.Client, server: Running, path: str) -> None:
    get, head = (http.request(method, fill(path, server)) for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/sample/infer", 200),
        ("/v2/models/encode/infer", 400),
        ("/v2/models/nope/infer", 404),
        ("/v2", 405),
    ],
)
def test_a_request_s_id_comes_back(http: httpx.Client, path: str, status: int) -> None:
    response = http.post(path, json={}, headers={"x-request-id": "tree-41"})
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") == ["tree-41"]


@pytest.mark.parametrize("name", ["a b", "", "x" * 129], ids=len)
def test_a_request_id_that_is_no_word_is_dropped(http: httpx.Client, name: str) -> None:
    response = http.get("/v2", headers={"x-request-id": name})
    assert response.status_code == 200
    assert "x-request-id" not in response.headers


def test_health_says_which_version_answers(http: httpx.Client, server: Running) -> None:
    assert http.get("/v2/health/live").json() == {"live": True}
    content = {"ready": True, "name": "bundle", "version": server.version}
    assert http.get("/v2/health/ready").json() == content
    assert server.version == server.digest[:12]


def test_server_metadata_names_the_extensions(http: httpx.Client) -> None:
    content = http.get("/v2").json()
    assert content.keys() == {"name", "version", "extensions"}
    assert content["name"] == "vae-pipeline"
    assert set(content["extensions"]) == {
        "binary_tensor_data",
        "model_configuration",
        "model_repository",
        "statistics",
    }


def described(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Tensors of the operation table, in the words of the specification."""
    names = {"uint8": "UINT8", "float32": "FP32"}
    return [
        {
            "name": tensor.name,
            "datatype": names[tensor.dtype],
            "shape": [-1 if isinstance(axis, str) else axis for axis in tensor.shape],
        }
        for tensor in tensors
    ]


@pytest.mark.parametrize("operation", NAMES)
def test_metadata_and_config_are_the_operation_table(
    http: httpx.Client, server: Running, engine: Engine, operation: str
) -> None:
    row: Operation = engine.operations[operation]
    metadata = http.get(f"/v2/models/{operation}").json()
    assert metadata == {
        "name": operation,
        "versions": [server.version],
        "platform": "onnxruntime_onnx",
        "inputs": described(row.inputs),
        "outputs": described(row.outputs),
        "parameters": {"model": "bundle", "digest": server.digest},
    }
    config = http.get(f"/v2/models/{operation}/config").json()
    assert (config["name"], config["backend"]) == (operation, "onnxruntime")
    assert config["max_batch_size"] == 4096
    for side, tensors in (("input", metadata["inputs"]), ("output", metadata["outputs"])):
        # Triton's dims leave out the batch
        assert config[side] == [
            {"name": t["name"], "data_type": f"TYPE_{t['datatype']}", "dims": t["shape"][1:]}
            for t in tensors
        ]
    for path in ("", "/config"):
        versioned = http.get(f"/v2/models/{operation}/versions/{server.version}{path}")
        assert versioned.json() == (config if path else metadata)


def test_statistics_count_rows_runs_and_failures(http: httpx.Client, x: np.ndarray) -> None:
    def statistics() -> dict[str, Any]:
        (entry,) = http.get("/v2/models/reconstruct/stats").json()["model_stats"]
        assert entry["name"] == "reconstruct"
        return dict(entry)

    before = statistics()
    for rows in (3, 5):
        body, headers = body_of({"x": x[:rows]}, ["x"])
        http.post("/v2/models/reconstruct/infer", content=body, headers=headers)
    http.post("/v2/models/reconstruct/infer", json={})
    after = statistics()
    assert after["inference_count"] - before["inference_count"] == 8
    assert after["execution_count"] - before["execution_count"] == 2
    grown = {
        name: value["count"] - before["inference_stats"][name]["count"]
        for name, value in after["inference_stats"].items()
    }
    assert grown == {
        "success": 2,
        "fail": 1,
        "queue": 2,
        "compute_input": 0,
        "compute_infer": 2,
        "compute_output": 2,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    parts = ("queue", "compute_infer", "compute_output")
    spent = {
        name: after["inference_stats"][name]["ns"] - before["inference_stats"][name]["ns"]
        for name in (*parts, "success")
    }
    assert 0 < sum(spent[part] for part in parts) <= spent["success"]
    assert after["last_inference"] > before["last_inference"]


def test_statistics_of_all_operations(http: httpx.Client, server: Running) -> None:
    content = http.get("/v2/models/stats").json()
    found = [(entry["name"], entry["version"]) for entry in content["model_stats"]]
    assert found == [(name, server.version) for name in NAMES]


def test_unloaded_is_503_until_it_is_loaded_again(
    http: httpx.Client, server: Running, engine: Engine
) -> None:
    ready = {"name": "sample", "version": server.version, "state": "READY", "reason": ""}
    try:
        assert http.post("/v2/repository/models/sample/unload").status_code == 200
        response = http.post("/v2/models/sample/infer", json={})
        assert refused(response, 503) == "sample was unloaded: load it to use it"
        assert response.headers["retry-after"] == "1"
        response = http.get("/v2/models/sample/ready")
        assert (response.status_code, response.json()["ready"]) == (503, False)
        assert http.get("/v2/models/encode/ready").json()["ready"] is True
        index = {entry["name"]: entry for entry in http.post("/v2/repository/index").json()}
        assert list(index) == list(NAMES)
        assert index["sample"]["state"] == "UNAVAILABLE"
        only = http.post("/v2/repository/index", json={"ready": True}).json()
        assert [entry["name"] for entry in only] == [name for name in NAMES if name != "sample"]
        assert http.get("/v2/health/ready").status_code == 200
    finally:
        assert http.post("/v2/repository/models/sample/load").status_code == 200
    response = http.post("/v2/models/sample/infer", json={"parameters": {"seed": 3}})
    same(arrays_of(response), {"x_loc": engine.sample(1, 3)})
    assert ready in http.post("/v2/repository/index", json={"ready": True}).json()
    assert http.get("/v2/models/sample/ready").json() == {"name": "sample", "ready": True}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("index", b"[]"),
        ("index", b"{"),
        ("models/sample/load", b'{"parameters": {"config": "{}"}}'),
        ("models/sample/load", b"3"),
        ("models/sample/unload", b"nul"),
    ],
)
def test_the_repository_refuses_what_it_does_not_know(
    http: httpx.Client, path: str, body: bytes
) -> None:
    refused(http.post(f"/v2/repository/{path}", content=body), 400)
    assert http.get("/v2/models/sample/ready").status_code == 200


def test_the_openapi_document_has_every_route_and_its_parts(
    http: httpx.Client, server: Running
) -> None:
    document = http.get("/openapi.json").json()
    found = {(m.upper(), path) for path, item in document["paths"].items() for m in item}
    assert found == {(route.method, route.path) for route in ROUTES}
    operations = [item for path in document["paths"].values() for item in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names) == len(ROUTES)
    references = json.dumps(document).split('"$ref": "#/components/schemas/')[1:]
    wanted = {reference.split('"')[0] for reference in references}
    assert wanted == document["components"]["schemas"].keys()
    assert server.version in document["info"]["title"]


def test_free_sizes_of_the_openapi_document_have_names(http: httpx.Client) -> None:
    operations = http.get("/openapi.json").json()["x-operations"]
    shapes = {tensor["name"]: tensor["shape"] for tensor in operations["score"]["inputs"]}
    assert shapes == {"x": ["batch", 6, 5], "eps": ["batch", "num_samples", 3]}


def test_the_openapi_example_runs(http: httpx.Client, engine: Engine) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    example = schemas["InferRequest"]["example"]
    seed, count = example["parameters"]["seed"], example["parameters"]["num_samples"]
    response = http.post("/v2/models/sample/infer", json=example)
    same(arrays_of(response), {"x_loc": engine.sample(count, seed)})


def test_every_status_is_in_the_readme_and_in_the_openapi_document(http: httpx.Client) -> None:
    """But that of a client that has left, who reads none."""
    kinds = {kind.status for kind in errors.VaeError.__subclasses__()} - {499}
    readme = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    (listed,) = re.findall(r"Errors are .*?\n- ", readme, re.DOTALL)
    assert {int(status) for status in re.findall(r"\b[45]\d\d\b", listed)} == kinds
    document = http.get("/openapi.json").json()
    assert {int(s) for s in document["paths"]["/v2"]["get"]["responses"]} - {200} == kinds


def test_docs_are_a_page_that_asks_this_server(http: httpx.Client) -> None:
    response = http.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text.startswith("<!doctype html>")
    assert "openapi.json" in response.text
    assert "http://" not in response.text.replace("http://www.w3.org", "")


def first_line(server: Running, *lines: str) -> bytes:
    """The status line that comes without any of the body being sent."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        head = "\r\n".join(("POST /v2/models/sample/infer HTTP/1.1", "Host: a", *lines, "", ""))
        connection.sendall(head.encode())
        return connection.makefile("rb").readline()


def test_a_body_that_says_it_is_too_large_is_not_read(server: Running) -> None:
    line = first_line(server, f"Content-Length: {16 * 2**20 + 1}")
    assert line == b"HTTP/1.1 413 Payload Too Large\r\n"


def test_a_body_in_chunks_is_refused(http: httpx.Client) -> None:
    text = refused(http.post("/v2/models/sample/infer", content=iter([b"{", b"}"])), 411)
    assert text == "a body must have a content-length: chunks are not read"


def test_a_deadline_that_passes_in_the_queue_is_504(http: httpx.Client) -> None:
    response = http.post("/v2/models/sample/infer", json={"parameters": {"timeout": 1}})
    assert refused(response, 504).startswith("the deadline passed in the queue, after 0.0")


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
@pytest.mark.parametrize("count", [1, 5, 2000])
def test_samples_of_a_seed_are_the_engine_s(
    http: httpx.Client, engine: Engine, seed: int, count: int
) -> None:
    expected = {"x_loc": engine.sample(count, seed)}
    for binary in (False, True):
        parameters = {"seed": seed, "num_samples": count, "binary_data_output": binary}
        response = http.post("/v2/models/sample/infer", json={"parameters": parameters})
        same(arrays_of(response), expected)
    eps = draw_rows(seed, 0, count, 3)
    same({"x_loc": engine.run("sample", {"eps": eps})["x_loc"]}, expected)


@pytest.mark.parametrize("draws", [1, 16])
def test_scores_of_a_seed_are_the_engine_s(
    http: httpx.Client, engine: Engine, x: np.ndarray, draws: int
) -> None:
    expected = engine.score(x[:200], draws, 7)
    for binary in (False, True):
        parameters = {"seed": 7, "num_samples": draws, "binary_data_output": binary}
        body, headers = body_of({"x": x[:200]}, ["x"] if binary else [], parameters=parameters)
        response = http.post("/v2/models/score/infer", content=body, headers=headers)
        same(arrays_of(response), expected)


def test_neighbours_in_a_batch_change_nothing(
    http: httpx.Client, engine: Engine, x: np.ndarray
) -> None:
    """Requests of different sizes, operations and draws at once, each with its own bytes."""
    rng = np.random.default_rng(8)
    cases = []
    for place in range(240):
        operation = ("score", "sample", "encode", "reconstruct")[place % 4]
        start, rows = int(rng.integers(0, 1000)), int(rng.choice([1, 2, 3, 17, 64, 300]))
        draws = int(rng.choice([1, 1, 3])) if operation == "score" else rows
        cases.append((operation, x[start : start + rows], draws, place // 3))

    def ask(case: tuple[str, np.ndarray, int, int]) -> None:
        operation, rows, draws, seed = case
        parameters: dict[str, Any] = {"binary_data_output": True}
        if operation in ("sample", "score"):
            parameters |= {"seed": seed, "num_samples": draws}
        arrays = {} if operation == "sample" else {"x": rows}
        body, headers = body_of(arrays, list(arrays), parameters=parameters)
        response = http.post(f"/v2/models/{operation}/infer", content=body, headers=headers)
        if operation == "sample":
            expected = {"x_loc": engine.sample(draws, seed)}
        elif operation == "score":
            expected = engine.score(rows, draws, seed)
        else:
            expected = engine.run(operation, {"x": rows})
        same(arrays_of(response), expected)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, cases))


class Visit:
    """What granian hands over for one request, here without granian."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.left = asyncio.Event()
        self.status = self.reads = 0
        path = "/v2/models/decode/infer"
        headers = {"content-length": str(len(body))}
        self.scope = SimpleNamespace(method="POST", path=path, headers=headers)

    async def __call__(self) -> bytes:
        self.reads += 1
        return self.body

    async def client_disconnect(self) -> None:
        await self.left.wait()

    def response_bytes(self, status: int, headers: object, body: bytes) -> None:
        self.status = status


class Stalled:
    """A server without a socket, whose first run waits until it may go on."""

    def __init__(self, engine: Engine, folder: Path, executor: Executor, max_rows: int) -> None:
        self.engine = engine
        self.began, self.go, self.computed = threading.Event(), threading.Event(), list[int]()
        self.counters = SharedCounters(folder / "counters", 2, 1)
        self.service = Service(self.counters, max_requests=9, max_rows=max_rows, timeout_s=30)
        self.batcher = Batcher(self.compute, {}, executor, max_rows, self.counters)
        self.service.serve(LoadedVersion(engine, self.batcher, "bundle", "1"))
        self.rest = RestServer(self.service, ROUTES, Access(), Limits(), Tracer())

    def compute(self, name: str, arrays: Arrays) -> Arrays:
        self.began.set()
        assert self.go.wait(20)
        self.computed.append(len(arrays["z"]))
        return self.engine.compute(name, arrays)

    async def come(self, visit: Visit, queued: int) -> "asyncio.Task[None]":
        """A request comes; the queue has so many rows then."""
        task = asyncio.ensure_future(self.answer(visit))
        while not (self.began.is_set() and self.batcher.queued == queued):
            await asyncio.sleep(0)
        return task

    async def answer(self, visit: Visit) -> None:
        await self.rest.__rsgi__(visit.scope, visit)


@pytest.fixture
def stalled(engine: Engine, tmp_path: Path) -> Iterator[Callable[[int], Stalled]]:
    """Make one of a number of rows that may wait."""
    made: list[Stalled] = []
    with ThreadPoolExecutor(1) as executor:

        def make(max_rows: int) -> Stalled:
            made.append(Stalled(engine, tmp_path, executor, max_rows))
            return made[-1]

        yield make
        for server in made:
            server.go.set()


def decoding(rows: int) -> Visit:
    return Visit(body_of({"z": np.zeros((rows, 3), np.float32)})[0])


def test_a_client_that_leaves_is_counted_and_not_computed(
    stalled: Callable[[int], Stalled],
) -> None:
    async def run(server: Stalled) -> None:
        first, second, third = (decoding(rows) for rows in (1, 7, 2))
        tasks = [await server.come(first, 0), await server.come(second, 7)]
        tasks.append(await server.come(third, 9))
        second.left.set()
        await tasks[1]
        assert server.counters.total("requests", "decode", "rest", 499) == 1
        server.go.set()
        await asyncio.gather(*tasks)
        assert [first.status, third.status] == [200, 200]
        assert server.computed == [1, 2]
        counts = server.batcher.queued, server.service.admission.under_way, server.rest.held
        assert counts == (0, 0, 0)

    asyncio.run(asyncio.wait_for(run(stalled(100)), 20))


def test_a_full_queue_refuses_without_a_look_at_the_body(
    stalled: Callable[[int], Stalled],
) -> None:
    """The first refusal says how much waits; those that follow cost next to nothing."""

    async def run(server: Stalled) -> None:
        running, queued, first, second, later = (decoding(3) for _ in range(5))
        tasks = [await server.come(running, 0), await server.come(queued, 3)]
        for visit in (first, second):
            await server.answer(visit)
        assert [(visit.status, visit.reads) for visit in (first, second)] == [(429, 1), (429, 0)]
        assert server.counters.total("requests", "decode", "rest", 429) == 2
        server.go.set()
        await asyncio.gather(*tasks)
        await server.answer(later)
        assert [visit.status for visit in (running, queued, later)] == [200, 200, 200]

    asyncio.run(asyncio.wait_for(run(stalled(4)), 20))


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_a_page_of_another_site_changes_nothing(http: httpx.Client, verb: str) -> None:
    path = f"/v2/repository/models/encode/{verb}"
    headers = {"origin": "http://evil.example"}
    text = refused(http.post(path, headers=headers, json={}), 403)
    assert text == "a page of 'http://evil.example' may not change this server"
    assert http.get("/v2/models/encode/ready").status_code == 200


def test_a_page_of_this_server_may_load(http: httpx.Client) -> None:
    headers = {"origin": str(http.base_url).rstrip("/")}
    path = "/v2/repository/models/encode/load"
    assert http.post(path, headers=headers, json={}).status_code == 200


def test_an_output_that_is_asked_for_twice_is_refused(http: httpx.Client) -> None:
    body = {"inputs": [], "outputs": [{"name": "x_loc"}, {"name": "x_loc"}]}
    text = refused(http.post("/v2/models/sample/infer", json=body), 400)
    assert text == "the output x_loc is asked for twice"
