"""Which pages of other origins a browser lets use the server."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.engine import Engine
from serving.errors import UsageRefused
from serving.server.cors import Cors, is_own_host, parse_origins
from serving.server.rest_routes import ROUTES
from tests.serving.conftest import SEALED
from tests.serving.running import SERVE, Running, serve
from tests.serving.server.arrays import same
from tests.serving.server.rest_requests import arrays_of, body_of, fill, refused
from tests.serving.server.secured import KEY

PAGE = "https://page.example"
OTHER = "https://other.example"
INFER = "/v2/models/encode/infer"
ASKED = "content-type, inference-header-content-length, authorization"


@pytest.fixture(scope="module")
def open_to_one(
    tmp_path_factory: pytest.TempPathFactory, slow_tier: None
) -> Iterator[httpx.Client]:
    """A client of a server with an API key that pages of one origin may use."""
    folder = tmp_path_factory.mktemp("one")
    arguments = ["--drain", "1", "--cors-origin", PAGE, "--cors-origin", "http://localhost:5173"]
    with serve(folder, SEALED, *arguments, VAE_API_KEY=KEY) as server:
        with httpx.Client(base_url=server.rest) as client:
            yield client


@pytest.fixture(scope="module")
def open_to_all(
    tmp_path_factory: pytest.TempPathFactory, slow_tier: None
) -> Iterator[tuple[httpx.Client, Running]]:
    folder = tmp_path_factory.mktemp("all")
    with serve(folder, SEALED, "--drain", "1", "--cors-origin", "*") as server:
        with httpx.Client(base_url=server.rest) as client:
            yield client, server


def preflight(origin: str = PAGE, method: str = "POST") -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": ASKED,
    }


def cors_headers(response: httpx.Response) -> set[str]:
    return {name for name in response.headers if name.startswith("access-control-")}


def test_by_default_no_page_of_another_origin_may_read_anything(http: httpx.Client) -> None:
    response = http.options(INFER, headers=preflight())
    refused(response, 405)
    assert not cors_headers(response)
    response = http.get("/v2", headers={"origin": PAGE})
    assert response.status_code == 200
    assert not cors_headers(response)
    assert "vary" not in response.headers


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:5173"])
def test_a_preflight_needs_no_key(open_to_one: httpx.Client, origin: str) -> None:
    """Browsers send it without one."""
    response = open_to_one.options(INFER, headers=preflight(origin))
    assert (response.status_code, response.content) == (204, b"")
    headers = response.headers
    assert headers["access-control-allow-origin"] == origin
    assert headers["access-control-allow-methods"] == "POST"
    assert headers["access-control-allow-headers"] == ASKED
    assert int(headers["access-control-max-age"]) > 0
    assert "origin" in headers["vary"]
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_path_answers_a_preflight(
    open_to_all: tuple[httpx.Client, Running], route: object
) -> None:
    client, server = open_to_all
    path = fill(route.path, server)  # type: ignore[attr-defined]
    response = client.options(path, headers=preflight())
    assert response.status_code == 204
    allowed = response.headers["access-control-allow-methods"].split(", ")
    assert route.method in allowed  # type: ignore[attr-defined]


def test_a_preflight_of_an_unknown_path_is_404(open_to_one: httpx.Client) -> None:
    response = open_to_one.options("/nope", headers=preflight())
    refused(response, 404)
    assert response.headers["access-control-allow-origin"] == PAGE


def test_a_page_infers_and_reads_the_length_of_the_json(
    open_to_one: httpx.Client, engine: Engine, x: np.ndarray
) -> None:
    body, headers = body_of({"x": x[:2]}, ["x"], parameters={"binary_data_output": True})
    headers |= {"origin": PAGE, "authorization": f"Bearer {KEY}", "x-request-id": "7"}
    response = open_to_one.post(INFER, content=body, headers=headers)
    same(arrays_of(response), engine.encode(x[:2]))
    assert response.headers["access-control-allow-origin"] == PAGE
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {"inference-header-content-length", "x-request-id"} <= set(exposed)


def test_a_page_may_read_errors(open_to_one: httpx.Client) -> None:
    """Else a browser tells its script nothing but that the request failed."""
    key = {"authorization": f"Bearer {KEY}"}
    for status, answer in (
        (401, open_to_one.post(INFER, headers={"origin": PAGE})),
        (400, open_to_one.post(INFER, headers={"origin": PAGE, **key}, content=b"{")),
        (404, open_to_one.get("/nope", headers={"origin": PAGE, **key})),
        (405, open_to_one.delete("/v2", headers={"origin": PAGE, **key})),
    ):
        refused(answer, status)
        assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    "origin",
    [OTHER, "null", f"{PAGE}.evil.example", "http://page.example", f"{PAGE}:8443", ""],
    ids=["other", "null", "longer", "http", "port", "empty"],
)
def test_a_page_of_an_origin_that_is_not_listed_reads_nothing(
    open_to_one: httpx.Client, origin: str
) -> None:
    refused(open_to_one.options(INFER, headers=preflight(origin)), 405)
    response = open_to_one.get("/v2/health/live", headers={"origin": origin})
    assert not cors_headers(response)
    assert response.headers["vary"] == "origin"


def test_any_origin(open_to_all: tuple[httpx.Client, Running]) -> None:
    client, _ = open_to_all
    for response in (
        client.options(INFER, headers=preflight(OTHER)),
        client.get("/v2/health/live", headers={"origin": "null"}),
    ):
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers


def test_only_a_listed_origin_may_load_and_unload(
    open_to_all: tuple[httpx.Client, Running], open_to_one: httpx.Client
) -> None:
    """A browser sends such a request to any server that it reaches, and may not read the answer."""
    path = "/v2/repository/models/encode/load"
    client, _ = open_to_all
    refused(client.post(path, headers={"origin": PAGE}), 403)
    headers = {"origin": PAGE, "authorization": f"Bearer {KEY}"}
    assert open_to_one.post(path, headers=headers).status_code == 200
    refused(open_to_one.post(path, headers=headers | {"origin": OTHER}), 403)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("10.0.0.7", True),
        ("localhost:8080", True),
        ("LocalHost", True),
        ("vae.example:8080", True),
        ("evil.example:8080", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:80", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_only_an_address_or_the_server_s_own_name_is_its_host(host: str, own: bool) -> None:
    assert is_own_host(host, "vae.example") is own


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["https://a.example"], ["https://a.example"]),
        (["HTTPS://A.Example/"], ["https://a.example"]),
        (["https://a.example:443", "http://b:80"], ["https://a.example", "http://b"]),
        (["https://a.example:8443"], ["https://a.example:8443"]),
        (["http://[::1]:3000"], ["http://[::1]:3000"]),
        (["capacitor://localhost"], ["capacitor://localhost"]),
        (["*"], ["*"]),
        ([], []),
    ],
    ids=str,
)
def test_origins_are_written_as_browsers_do(given: list[str], expected: list[str]) -> None:
    assert parse_origins(given) == Cors(frozenset(expected))


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "a.example",
        "https://",
        "https://a/b",
        "https://*.a",
        "null",
        "https://a,https://b",
        "**",
    ],
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(UsageRefused, match="an origin must look like") as caught:
        parse_origins([origin])
    assert repr(origin) in str(caught.value)


@pytest.mark.slow
def test_the_command_refuses_what_is_no_origin(tmp_path: Path) -> None:
    command = [*SERVE, "--model", str(SEALED), "--cors-origin", PAGE, "--cors-origin", "page"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "an origin must look like https://example.org or be *, got 'page'" in done.stderr
    assert done.stdout == ""
