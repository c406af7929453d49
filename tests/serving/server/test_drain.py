"""A server that is told to stop answers every request that it has, and then ends."""

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import pytest

from serving.protocol import open_inference_pb2 as pb
from tests.serving.conftest import SEALED
from tests.serving.running import serve
from tests.serving.server.asking import CASES, PATH, REQUEST, head, over_grpc, ready, wait_for

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_to_all_processes_drains_like_one_to_the_parent(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal sends SIGINT to the whole process group, systemd SIGTERM to the whole unit."""
    with serve(tmp_path, SEALED, "--workers", "2", "--drain", "5") as running:
        slow = Slow(running.port)
        for pid in (*running.children(), running.process.pid):
            os.kill(pid, number)
        assert slow.finish().startswith(b"HTTP/1.1 200")
        assert running.process.wait(20) == 0
    log = running.log.read_text()
    assert "ended with exit code" not in log
    assert "Traceback" not in log


class Slow:
    """A request whose body stops half way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        # after one answered request, the server surely has this connection
        self.socket.sendall(head(len(REQUEST)) + REQUEST)
        assert self.socket.recv(2**16).startswith(b"HTTP/1.1 200")
        self.socket.sendall(head(len(REQUEST)) + REQUEST[:40])

    def finish(self) -> bytes:
        """Send the rest and return the answer; return nothing if the server has ended."""
        try:
            self.socket.sendall(REQUEST[40:])
            return self.wait()
        except ConnectionError:
            return b""

    def wait(self) -> bytes:
        """Return what the server sends, if anything."""
        with self.socket, contextlib.suppress(ConnectionError):
            return self.socket.recv(2**16)
        return b""


@dataclass(slots=True)
class Drained:
    """The results of clients of a server that stops under load."""

    answered: set[str] = field(default_factory=set)
    """Ids of answered requests."""
    lost: list[str] = field(default_factory=list)
    """Requests without an answer, on connections that had one before."""
    turned_away: set[str] = field(default_factory=set)
    """Requests on connections that never had an answer."""
    refused: list[str] = field(default_factory=list)
    """Answers that are not 200."""


def keep_asking(port: int, name: str, renew: bool, drained: Drained) -> None:
    """Send requests until nothing listens; close a connection if told to, or after each answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    on_this = 0
    for number in range(100_000):
        key = f"{name}-{number}"
        try:
            connection.request("POST", PATH, REQUEST, {"x-request-id": key})
            answer = connection.getresponse()
            answer.read()
        except ConnectionRefusedError:
            return
        except (OSError, http.client.HTTPException) as err:
            if on_this:
                drained.lost.append(f"{key}: {err!r}")
            else:
                drained.turned_away.add(key)
            connection.close()
            on_this = 0
            continue
        on_this += 1
        drained.answered.add(key)
        if answer.status != 200:
            drained.refused.append(f"{key}: {answer.status}")
        if renew or answer.getheader("connection") == "close":
            connection.close()
            on_this = 0


@pytest.mark.parametrize(("workers", "clients"), [(1, 4), (2, 4), (2, 7)])
def test_every_request_that_the_server_had_is_answered_before_it_stops(
    tmp_path: Path, workers: int, clients: int
) -> None:
    drained = Drained()
    arguments = ("--workers", str(workers), "--drain", "10", "--access-log", "--log-format", "json")
    with serve(tmp_path, SEALED, *arguments) as running:
        threads = [
            threading.Thread(
                target=keep_asking, args=(running.port, f"client-{i}", i % 2 == 0, drained)
            )
            for i in range(clients)
        ]
        for thread in threads:
            thread.start()
        wait_for("all ask", lambda: len(drained.answered) > 100)
        slow = Slow(running.port)
        running.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()  # from here on nothing listens
        assert running.process.poll() is None
        assert slow.finish().startswith(b"HTTP/1.1 200")
        assert running.process.wait(20) == 0
    assert drained.lost == []
    assert drained.refused == []
    logged = map(json.loads, running.log.read_text().splitlines())
    seen = {line["request_id"] for line in logged if "request_id" in line}
    assert drained.answered == seen
    assert not drained.turned_away & seen


def test_a_draining_server_is_not_ready(tmp_path: Path) -> None:
    with serve(tmp_path, SEALED, "--drain", "5") as running, over_grpc(running) as ask:
        with grpc.insecure_channel(running.grpc) as channel:
            call = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=pb.HealthCheckRequest.SerializeToString,
                response_deserializer=pb.HealthCheckResponse.FromString,
            )
            assert call(pb.HealthCheckRequest()).status == 1
            slow = Slow(running.port)  # the server cannot end before this request
            running.process.send_signal(signal.SIGTERM)
            wait_for("it drains", lambda: not ready(running)["ready"])
            answer = httpx.get(f"{running.rest}/v2/health/ready")
            assert (answer.status_code, answer.headers["connection"]) == (503, "close")
            assert httpx.get(f"{running.rest}/v2/models/encode/ready").status_code == 503
            assert httpx.get(f"{running.rest}/v2/health/live").status_code == 200
            assert call(pb.HealthCheckRequest()).status == 2
            version, _ = ask(CASES[0])  # a request is still answered
            assert version == running.version
        assert slow.finish().startswith(b"HTTP/1.1 200")


def test_a_request_that_outlasts_the_drain_is_cut(tmp_path: Path) -> None:
    with serve(tmp_path, SEALED, "--drain", "1", "--timeout", "600") as running:
        slow = Slow(running.port)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0
        assert slow.wait() == b""
