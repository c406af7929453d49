"""Our transports around nothing: `python -m tests.benchmarks.serve.transports PORT GRPC_PORT`.

Granian and `serving.http2`, with the settings of `vae serve`, read a request and answer with as
many bytes as its path ends with. No server on these transports can be faster.
"""

import asyncio
import multiprocessing
import signal
import sys
import tempfile
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from serving.http2.budget import Budget
from serving.http2.headers import Fields
from serving.http2.server import Http2Server
from serving.http2.stream import Carrier, Stream
from serving.server.granian_adapter import GranianServer
from serving.server.grpc_wire import ANSWER, OK_TRAILERS, PREFIX, prefix
from tests.serving.server.settings import make_settings

HEADERS = [("content-type", "application/octet-stream")]


@lru_cache
def body_of(path: str) -> bytes:
    """Return as many bytes as a path like `/3288` asks for."""
    return bytes(int(path.rpartition("/")[2]))


def message_of(fields: Fields) -> bytes:
    """Return a gRPC message of that size, its prefix included."""
    body = body_of(dict(fields)[b":path"].decode())
    return prefix(len(body) - PREFIX) + body[PREFIX:]


class Echo(Stream):
    """A call that is answered once its request has arrived."""

    def __init__(self, connection: Carrier, number: int, message: bytes) -> None:
        super().__init__(connection, number)
        self._message = message

    def received(self, data: bytes) -> None:
        self.grant()

    def finished(self) -> None:
        self.send(self._message, headers=ANSWER, trailers=OK_TRAILERS)


class Application:
    """What granian runs, with the server of HTTP/2 beside it."""

    def __init__(self, grpc_port: int, index: int) -> None:
        self._grpc_port = grpc_port
        self._http2 = Http2Server(message_of, Echo, Budget(2**28, 2**27), 1024)

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(self._http2.start("127.0.0.1", self._grpc_port, None))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the adapter blocks it

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        if scope.method == "POST":
            await protocol()
        protocol.response_bytes(200, HEADERS, body_of(scope.path))


def main(port: int, grpc_port: int) -> None:
    """Answer until a signal comes."""
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(make_settings(Path(folder), port=port), max_connections=1024)
        server = GranianServer(settings, settings.open_counters(0))
        server.run_workers(partial(Application, grpc_port))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
