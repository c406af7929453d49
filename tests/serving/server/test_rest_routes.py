"""Every route of REST but inference: health, metadata, statistics, the repository."""

from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from serving.engine import Engine
from serving.operations import Operation, Tensor
from serving.server.rest_routes import ROUTES
from tests.serving.running import Running
from tests.serving.server.arrays import same
from tests.serving.server.rest_requests import NAMES, arrays_of, body_of, fill, refused


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
        ("GET", "/nope", "no path '/nope': see /docs"),
        ("GET", "/web/nope.js", "no file 'nope.js'"),
        ("GET", "/v2//", "no path '/v2//'"),
        ("GET", "/v2/models/a/b/c", "no path"),
        ("POST", "/v2/models/sample/infer//", "no path"),
    ],
)
def test_an_unknown_path_model_or_version_is_404(
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
    "path",
    [
        route.path
        for route in ROUTES
        if route.method == "GET" and route.path not in ("/metrics", "/status")  # they have a time
    ],
)
def test_head_is_get_without_the_body(http: httpx.Client, server: Running, path: str) -> None:
    get, head = (http.request(method, fill(path, server)) for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["content-length"] == get.headers["content-length"]


def test_health_tells_which_version_answers(http: httpx.Client, server: Running) -> None:
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
    """Describe tensors of the operation table as the specification does."""
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
        # Triton's dims do not include the batch axis
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
        "compute_input": 2,
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
    """Their version is a number: that of a bundle folder is read from its hexadecimal digits."""
    content = http.get("/v2/models/stats").json()
    found = [(entry["name"], entry["version"]) for entry in content["model_stats"]]
    assert found == [(name, str(int(server.version, 16))) for name in NAMES]


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
        ("models/sample/load", b'{"parameters": {"file:1/model.onnx": "AAAA"}}'),
        ("models/sample/load", b"3"),
        ("models/sample/unload", b"nul"),
    ],
)
def test_the_repository_refuses_what_it_does_not_know(
    http: httpx.Client, path: str, body: bytes
) -> None:
    refused(http.post(f"/v2/repository/{path}", content=body), 400)
    assert http.get("/v2/models/sample/ready").status_code == 200


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_a_page_of_another_site_changes_nothing(http: httpx.Client, verb: str) -> None:
    path = f"/v2/repository/models/encode/{verb}"
    headers = {"origin": "http://evil.example"}
    text = refused(http.post(path, headers=headers, json={}), 403)
    assert text == "a page of 'http://evil.example' may not change this server"
    assert http.get("/v2/models/encode/ready").status_code == 200


@pytest.mark.parametrize("origin", [{"origin": "http://evil.example"}, {}])
def test_a_page_of_another_site_sends_no_rows(
    http: httpx.Client, x: np.ndarray, origin: dict[str, str]
) -> None:
    """A browser sends plain text without asking first, and its rows would be live ones."""
    body = {
        "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 6, 5], "data": x[:1].tolist()}]
    }
    headers = {"content-type": "text/plain", "sec-fetch-site": "cross-site", **origin}
    path = "/v2/models/encode/infer"
    assert "see --cors-origin" in refused(http.post(path, headers=headers, json=body), 403)
    for site in ("same-origin", "same-site", "none"):
        headers["sec-fetch-site"] = site
        assert http.post(path, headers=headers, json=body).status_code == 200


def test_a_name_that_was_pointed_at_this_server_changes_nothing(http: httpx.Client) -> None:
    """DNS rebinding: the browser takes the page of another site for one of this server."""
    headers = {"origin": "http://evil.example:8080", "host": "evil.example:8080"}
    path = "/v2/repository/models/encode/unload"
    text = refused(http.post(path, headers=headers, json={}), 403)
    assert text.endswith("no API key: name the page's origin with --cors-origin")
    assert http.get("/v2/models/encode/ready").status_code == 200


def test_a_client_that_is_no_page_may_use_any_name(http: httpx.Client) -> None:
    """Containers, proxies and probes send no origin."""
    path = "/v2/repository/models/encode/load"
    assert http.post(path, headers={"host": "vae:8080"}, json={}).status_code == 200


def test_a_page_of_this_server_may_load(http: httpx.Client) -> None:
    headers = {"origin": str(http.base_url).rstrip("/")}
    path = "/v2/repository/models/encode/load"
    assert http.post(path, headers=headers, json={}).status_code == 200
