"""Our transports around nothing: `python -m tests.benchmarks.serve.transports PORT GRPC_PORT`.

`serving.http1` and `serving.http2`, as in a worker of `vae serve`, read a request and answer with
as many bytes as its path ends with. No server on these transports can be faster.
"""

import asyncio
import signal
import sys
from functools import lru_cache

import uvloop

from serving.http1.exchange import Exchange
from serving.http1.server import Http1Server
from serving.http2.budget import Budget
from serving.http2.headers import Fields
from serving.http2.server import Http2Server
from serving.http2.stream import Carrier, Stream
from serving.server.grpc_wire import ANSWER, OK_TRAILERS, PREFIX, prefix

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


def refuse(exchange: Exchange, status: int, reason: str) -> None:
    """Answer a request that breaks the protocol."""
    exchange.respond(status, close=True)


async def serve(port: int, grpc_port: int) -> None:
    """Answer until a signal comes."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)

    async def answer(exchange: Exchange) -> None:
        await exchange.read()
        exchange.respond(200, HEADERS, body_of(exchange.head.target.decode()))

    def handle(exchange: Exchange) -> None:
        exchange.task = asyncio.Task(answer(exchange), loop=loop, name="echo")

    http1 = Http1Server(handle, refuse, 1024)
    http2 = Http2Server(message_of, Echo, Budget(2**28, 2**27), 1024)
    await http1.start("127.0.0.1", port, None)
    await http2.start("127.0.0.1", grpc_port, None)
    await ended.wait()
    await asyncio.gather(http1.stop(1.0), http2.stop(1.0))


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
