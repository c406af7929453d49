"""The API key: what it opens over both transports, and what is open without it."""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from serving import Client
from serving.engine import Engine
from serving.errors import Unauthorized
from serving.protocol import open_inference_pb2 as pb
from serving.server.auth import Access
from serving.server.grpc_calls import SERVICE
from serving.server.rest_routes import ROUTES
from tests.serving.running import Running
from tests.serving.server.secured import KEY, infer_over

HEALTH = (
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{name}/ready",
    "/v2/models/{name}/versions/{version}/ready",
)

PAGES = ("/openapi.json", "/docs", "/", "/web/{file}")
"""They need no key, and tell nothing that needs one."""

OWN = "/webhooks/mlflow"
"""It is checked by its signature."""


@pytest.fixture(scope="module")
def http(locked: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.rest) as client:
        yield client


def fill(path: str, server: Running) -> str:
    filled = path.replace("{name}", "sample").replace("{version}", server.version)
    return filled.replace("{file}", "app.js")


@pytest.mark.parametrize(
    "route",
    [route for route in ROUTES if route.path not in (*HEALTH, *PAGES, OWN)],
    ids=lambda route: f"{route.method} {route.path}",
)
def test_without_the_key_nothing_is_answered(
    http: httpx.Client, locked: Running, route: Any
) -> None:
    wrong: list[Any] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"x-api-key": "wrong"},
        {"x-api-key": ""},
        {"x-api-key": b"\xc3\xa4\xff"},
    ]
    for headers in wrong:
        response = http.request(route.method, fill(route.path, locked), headers=headers)
        assert response.status_code == 401, (headers, response.text)
        assert "Authorization: Bearer KEY" in response.json()["error"]
    ready = http.post("/v2/repository/index", headers={"x-api-key": KEY}).json()
    assert {entry["state"] for entry in ready} == {"READY"}


@pytest.mark.parametrize("path", [*HEALTH, *PAGES])
def test_health_and_pages_are_open(http: httpx.Client, locked: Running, path: str) -> None:
    assert http.get(fill(path, locked)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}],
    ids=["bearer", "lower case", "x-api-key"],
)
def test_the_key_opens_everything(
    http: httpx.Client, locked: Running, headers: dict[str, str]
) -> None:
    try:
        for route in ROUTES:
            content = b"{}" if route.method == "POST" else None
            response = http.request(
                route.method, fill(route.path, locked), headers=headers, content=content
            )
            assert response.status_code in (200, 202), (route.path, response.text)
    finally:
        http.post(fill("/v2/repository/models/{name}/load", locked), headers=headers)


def test_a_401_names_the_scheme(http: httpx.Client) -> None:
    """RFC 9110, section 15.5.2: the server MUST send a WWW-Authenticate header field."""
    response = http.get("/v2")
    assert response.headers.get("www-authenticate", "").startswith("Bearer")


def test_an_unknown_path_is_404_without_the_key(http: httpx.Client) -> None:
    assert http.get("/nope").status_code == 404


def test_clients_send_the_key(
    locked: Running, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.sample(2, 4).tobytes()
    with Client(locked.rest, api_key=KEY) as client:
        assert client.sample(2, seed=4).tobytes() == expected
    monkeypatch.setenv("VAE_API_KEY", KEY)
    with Client(locked.rest) as client:
        assert client.sample(2, seed=4).tobytes() == expected
    with Client(locked.rest, api_key="wrong") as client, pytest.raises(Unauthorized):
        client.sample(2, seed=4)


@pytest.mark.parametrize(
    ("name", "request_of"),
    [
        ("ModelInfer", pb.ModelInferRequest(model_name="sample")),
        ("ServerMetadata", pb.ServerMetadataRequest()),
        ("ModelMetadata", pb.ModelMetadataRequest(name="sample")),
        ("ModelConfig", pb.ModelConfigRequest(name="sample")),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="sample")),
        ("RepositoryIndex", pb.RepositoryIndexRequest()),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="sample")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="sample")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grpc_without_the_key_is_unauthenticated(
    locked: Running, name: str, request_of: Any
) -> None:
    with grpc.insecure_channel(locked.grpc) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/{name}")
        for metadata in (
            [],
            [("authorization", "Bearer wrong")],
            [("x-api-key", "wrong")],
            [("authorization", f"Basic {KEY}")],
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(request_of.SerializeToString(), timeout=10, metadata=metadata)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def test_grpc_health_is_open_and_the_key_opens_the_rest(locked: Running, engine: Engine) -> None:
    with grpc.insecure_channel(locked.grpc) as channel:
        sample = pb.ModelReadyRequest(name="sample").SerializeToString()
        for path, message in (
            (f"{SERVICE}/ServerLive", b""),
            (f"{SERVICE}/ServerReady", b""),
            (f"{SERVICE}/ModelReady", sample),
            ("grpc.health.v1.Health/Check", b""),
        ):
            call: Any = channel.unary_unary(f"/{path}")
            assert call(message, timeout=10) == b"\x08\x01"  # field 1 is true, or SERVING
        for metadata in (("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)):
            reply = infer_over(channel, metadata)
            assert reply.raw_output_contents[0] == engine.sample(1, 4).tobytes()


def test_refused_requests_are_counted_by_both_transports(
    http: httpx.Client, locked: Running
) -> None:
    def counts() -> dict[str, float]:
        text = http.get("/metrics", headers={"x-api-key": KEY}).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if 'status="401"' in line]
        return {
            transport: sum(float(value) for name, value in lines if f'"{transport}"' in name)
            for transport in ("rest", "grpc")
        }

    before = counts()
    http.post("/v2/models/sample/infer", json={})
    with grpc.insecure_channel(locked.grpc) as channel, pytest.raises(grpc.RpcError):
        infer_over(channel)
    after = counts()
    assert {transport: after[transport] - before[transport] for transport in after} == {
        "rest": 1,
        "grpc": 1,
    }


def test_a_key_is_compared_as_a_whole() -> None:
    Access().check(None, None)
    access = Access(api_key=KEY)
    access.check(f"Bearer {KEY}", None)
    access.check(None, KEY)
    access.check("Basic abc", KEY)
    for authorization, api_key in (
        (None, None),
        ("", ""),
        (f"Bearer {KEY} ", None),
        (f"Bearer {KEY.upper()}", None),
        (None, KEY + "\0"),
        ("Bearer wrong", KEY),
        (None, "ключ"),
    ):
        with pytest.raises(Unauthorized):
            access.check(authorization, api_key)
