"""Log lines of a server parse, name requests by id, and answers tell nothing of a defect."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest

from serving.protocol import open_inference_pb2 as pb
from serving.server.auth import Access
from serving.server.grpc_calls import METHODS
from serving.server.grpc_server import GrpcServer
from serving.server.logging_config import JsonFormatter, PlainFormatter
from serving.server.rest_messages import Limits
from serving.server.rest_routes import ROUTES
from serving.server.rest_server import RestServer
from serving.server.tracing import Tracer
from tests.serving.conftest import SEALED
from tests.serving.running import Running, serve
from tests.serving.server.asking import CASES, body, over_grpc, wait_for
from tests.serving.server.visit import Visit

SECRET = "/home/me/password=hunter2"
INFER = "/v2/models/encode/infer"


@dataclass(frozen=True, slots=True)
class Written:
    """Everything that a server wrote from its start to its end."""

    stdout: bytes
    """Output after the line that announces that it is ready."""
    lines: list[str]

    def parsed(self) -> list[dict[str, Any]]:
        """Parse the lines of stderr, which must be JSON objects."""
        return [json.loads(line) for line in self.lines]


def finish(running: Running) -> Written:
    """Stop the server, and read what it wrote."""
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 0
    assert running.process.stdout is not None
    return Written(running.process.stdout.read(), running.log.read_text().splitlines())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Written:
    """A server that logs in JSON: it got requests, and its worker was killed once."""
    arguments = ("--log-format", "json", "--access-log", "--drain", "0.2")
    with serve(tmp_path_factory.mktemp("json"), SEALED, *arguments) as running:
        with httpx.Client(base_url=running.rest) as client:
            client.post(INFER, json=body(CASES[0]), headers={"x-request-id": "first"})
            client.post(INFER, content=b"{", headers={"x-request-id": "second"})
            client.get("/nothing", headers={"x-request-id": "third"})
            client.get("/v2/health/live")
            client.get("/v2/nothing%0Aforged%0D%22%7B")
        with over_grpc(running) as ask:
            ask(CASES[0])
        wait_for("it is logged", lambda: "ModelInfer" in running.log.read_text())
        (worker,) = running.children()
        os.kill(worker, signal.SIGKILL)
        wait_for("it is noticed", lambda: "ended with exit code" in running.log.read_text())
        wait_for("it is replaced", lambda: httpx.get(f"{running.rest}/v2").status_code == 200)
        return finish(running)


def test_every_line_is_a_json_object_with_the_usual_keys(written: Written) -> None:
    for line in written.parsed():
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", line["time"])
        assert line["level"] in ("info", "warning", "error")


def test_stdout_has_one_line(written: Written) -> None:
    assert written.stdout == b""


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("first", f"POST {INFER} 200"),
        ("second", f"POST {INFER} 400"),
        ("third", "GET /nothing 404"),
    ],
)
def test_the_access_log_has_each_request_by_its_id(
    written: Written, key: str, message: str
) -> None:
    (line,) = [line for line in written.parsed() if line.get("request_id") == key]
    assert line["message"] == message
    assert line["level"] == "info"
    assert 0 < line["ms"] < 60_000


def test_a_request_without_an_id_is_logged_too(written: Written) -> None:
    (line,) = [line for line in written.parsed() if "health/live" in line["message"]]
    assert line["message"] == "GET /v2/health/live 200"
    assert "request_id" not in line


def test_the_access_log_has_calls_of_grpc(written: Written) -> None:
    assert [line for line in written.parsed() if "ModelInfer" in line["message"]]


def test_a_worker_that_died_is_told(written: Written) -> None:
    (line,) = [line for line in written.parsed() if "ended with exit code" in line["message"]]
    assert line["message"] == "worker 0 ended with exit code -9"
    assert (line["level"], line["logger"]) == ("error", "serving.server.worker_pool")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, slow_tier: None) -> Mapping[str, Written]:
    """Servers with plain log lines, with and without the access log."""
    found = {}
    for name, options in (("access", ("--access-log",)), ("quiet", ())):
        folder = tmp_path_factory.mktemp(name)
        with serve(folder, SEALED, "--drain", "0.2", *options) as running:
            with httpx.Client(base_url=running.rest) as client:
                client.get("/v2", headers={"x-request-id": "mine"})
                client.get("/v2/nothing%0A12:00:00%20forged")
            found[name] = finish(running)
    return found


def test_a_line_for_a_person_has_time_request_status_and_id(plain: Mapping[str, Written]) -> None:
    (line,) = [line for line in plain["access"].lines if "GET /v2 " in line]
    assert re.fullmatch(r"\d\d:\d\d:\d\d GET /v2 200 request_id=mine ms=[\d.]+", line)


def test_a_path_cannot_forge_a_line(plain: Mapping[str, Written]) -> None:
    lines = plain["access"].lines
    assert len([line for line in lines if "nothing" in line]) == 1
    assert not [line for line in lines if re.match(r"[\d:]+ forged", line)]


def test_without_the_access_log_requests_are_not_logged(plain: Mapping[str, Written]) -> None:
    assert not [line for line in plain["quiet"].lines if "GET" in line]
    assert [line[9:] for line in plain["quiet"].lines] == ["draining"]
    assert [written.stdout for written in plain.values()] == [b"", b""]


class Broken:
    """A service whose every method raises an unexpected error."""

    draining = False
    full = False

    def record(self, *arguments: object) -> None:
        """Count nothing."""

    def room(self) -> int:
        """Accept a request."""
        return 1

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(SECRET)


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """Collect what the package's loggers write."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment, method-assign]
    logger = logging.getLogger("serving")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", INFER), ("GET", "/v2"), ("GET", "/metrics"), ("GET", "/v2/health/ready")],
)
@pytest.mark.parametrize("given", ["", "mine"], ids=["no id", "an id"])
def test_an_unexpected_error_shows_only_an_id(
    logged: list[logging.LogRecord], method: str, path: str, given: str
) -> None:
    broken: Any = Broken()
    server = RestServer(broken, ROUTES, Access(), Limits(), Tracer())
    visit = Visit(method, path, {"x-request-id": given} if given else {}, b"{}")
    asyncio.run(visit.to(server))
    assert visit.answers == 1
    key = visit.headers["x-request-id"]
    expected = (500, {"error": f"internal error, request {key}"})
    assert (visit.status, json.loads(visit.content)) == expected
    assert key == given or re.fullmatch("[0-9a-f]{32}", key)
    assert SECRET.encode() not in visit.content
    (record,) = logged
    assert record.levelname == "ERROR"
    assert vars(record)["request_id"] == key
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == SECRET


def test_an_unexpected_error_behind_grpc_shows_only_an_id(
    logged: list[logging.LogRecord],
) -> None:
    async def ask() -> str:
        broken: Any = Broken()
        server = GrpcServer(broken, METHODS, Access(), Tracer(), max_bytes=2**20, max_calls=8)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        await server.start("127.0.0.1", port, None)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerMetadata",
                request_serializer=pb.ServerMetadataRequest.SerializeToString,
                response_deserializer=pb.ServerMetadataResponse.FromString,
            )
            try:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(pb.ServerMetadataRequest())
            finally:
                await server.stop(0)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        return str(caught.value.details())

    details = asyncio.run(ask())
    (record,) = logged
    assert details == f"internal error, request {vars(record)['request_id']}"


def record_of(message: str, **extra: object) -> logging.LogRecord:
    """Return a log record, with the error that is being handled, if any."""
    logger = logging.getLogger("serving.somewhere")
    caught = sys.exc_info()
    return logger.makeRecord(
        logger.name,
        logging.ERROR,
        __file__,
        1,
        message,
        (),
        caught if caught[0] else None,
        extra=extra,
    )


def test_whatever_a_message_holds_it_is_one_json_line() -> None:
    message = 'two\nlines, "quotes", \u2028 and \x00'
    try:
        raise ValueError("deep\ndown")
    except ValueError:
        line = JsonFormatter().format(record_of(message, request_id="9", ms=1.5))
    assert len(line.splitlines()) == 1
    content = json.loads(line)
    assert content["message"] == message
    assert (content["request_id"], content["ms"]) == ("9", 1.5)
    assert content["exception"].endswith("ValueError: deep\ndown")


def test_a_person_sees_the_traceback_below_the_line() -> None:
    try:
        raise ValueError("deep")
    except ValueError:
        text = PlainFormatter().format(record_of("internal error", request_id="9"))
    assert re.match(r"\d\d:\d\d:\d\d internal error request_id=9\nTraceback", text)
    assert text.endswith("ValueError: deep")
