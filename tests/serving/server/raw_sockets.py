"""Raw sockets to a server, and what its worker holds in memory."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.serving.running import Running


def memory(server: Running, name: str) -> int:
    """Return the worker's bytes of memory from /proc: VmRSS is now, VmHWM is the peak."""
    (worker,) = server.children()
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def forget_peak(server: Running) -> None:
    (worker,) = server.children()
    Path(f"/proc/{worker}/clear_refs").write_text("5")


def held(http: httpx.Client) -> dict[str, float]:
    lines = http.get("/metrics").text.splitlines()
    return {
        line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("vae_queued_")
    }


@contextlib.contextmanager
def connected(server: Running, *, timeout_s: float = 10) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout_s) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes or resets the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def send(server: Running, content: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes, and return what comes back until the server closes."""
    with connected(server) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(content)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def statuses(received: bytes) -> list[int]:
    lines = [line for line in received.split(b"\r\n") if b"HTTP/1.1 " in line]
    return [int(line.rsplit(b"HTTP/1.1 ", 1)[1].split()[0]) for line in lines]
