"""Request lines and heads that are rare: what the server makes of each."""

import json

import httpx
import numpy as np
import pytest

from serving.engine import Engine
from tests.serving.running import Running
from tests.serving.server.arrays import same
from tests.serving.server.raw_sockets import connected, send, statuses
from tests.serving.server.rest_requests import arrays_of, refused

BODY = b'{"parameters": {"seed": 3}}'


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("POST /v2/models/s%61mple/infer", 200),
        ("POST /v2/models/%73%61%6d%70%6c%65/infer", 200),
        ("POST http://elsewhere.example:80/v2/models/sample/infer", 200),
        ("POST /v2/models/sample/infer?a=1&a=2&=&b", 200),
        ("POST /v2/models/sample/infer?", 200),
        ("POST //v2/models/sample/infer", 404),
        ("POST /v2/models//infer", 404),
        ("POST /v2/./models/sample/infer", 404),
        ("POST /v2/models/%e2%82%ac/infer", 404),
        ("POST /v2/models/%ff%00/infer", 404),
        ("POST /V2/models/sample/infer", 404),
        ("OPTIONS *", 404),
        ("TRACE /v2", 405),
        ("PROPFIND /v2", 405),
        ("post /v2/models/sample/infer", 400),
        ("QUERY /v2/models/sample/infer", 405),
    ],
)
def test_a_request_line(server: Running, line: str, status: int) -> None:
    head = f"{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(BODY)}\r\n\r\n"
    received = send(server, head.encode() + BODY)
    assert statuses(received) == [status]
    if status != 200:
        assert json.loads(received.split(b"\r\n\r\n", 1)[1]).keys() == {"error"}


def test_expect_100_continue(server: Running, engine: Engine) -> None:
    """curl sends it before larger bodies, and .NET if it is told to."""
    head = "POST /v2/models/sample/infer HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
    for length in (f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"):
        with connected(server) as connection:
            connection.sendall(f"{head}Connection: close\r\n{length}\r\n\r\n".encode())
            assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if "chunked" in length else BODY
            connection.sendall(body)
            received = connection.makefile("rb").read()
        assert statuses(received) == [200]
        content = json.loads(received.split(b"\r\n\r\n", 1)[1])
        found = np.array(content["outputs"][0]["data"], np.float32)
        assert found.tobytes() == engine.sample(1, 3).tobytes()


def test_a_get_with_a_body_is_answered(http: httpx.Client, engine: Engine) -> None:
    response = http.request("GET", "/v2/health/live", content=b"x" * 1000)
    assert response.json() == {"live": True}
    response = http.post("/v2/models/sample/infer", content=BODY)
    same(arrays_of(response), {"x_loc": engine.sample(1, 3)})


@pytest.mark.parametrize("path", ["/v2/models/nope", "/nope"])
def test_head_of_what_is_not_there(http: httpx.Client, path: str) -> None:
    response = http.head(path)
    assert (response.status_code, response.content) == (404, b"")
    refused(http.get(path), 404)


def test_http_1_0(server: Running) -> None:
    head = f"POST /v2/models/sample/infer HTTP/1.0\r\nContent-Length: {len(BODY)}\r\n\r\n"
    received = send(server, head.encode() + BODY)
    assert received.startswith(b"HTTP/1.0 200 OK\r\n")
