"""Read the bodies of requests: whole, in chunks, compressed; within limits of size and time.

A body counts as in memory from its first byte until its request is answered.
"""

import asyncio
import time
from typing import Any

from serving.errors import BodyTimeout, ClientLeft, DataRefused, Overloaded, TooLarge
from serving.protocol.http_body import HEADER_LENGTH
from serving.server.compression import Inflater, coding_of
from serving.server.rest_messages import Limits, Request, header_of

_SMALL_BODY = 2**18
"""Bytes of a body that is read at once, and counted as it was declared. By default, as many as
there may be connections fit in the limit of all bodies."""


class BodyReader:
    """Reads the bodies of all requests of one worker.

    Args:
        limits: limits of sizes and times.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0
        """Bytes of bodies in memory."""

    def release(self, request: Request) -> None:
        """Count the body of a request as out of memory."""
        self.held -= request.held

    async def read(self, request: Request, max_bytes: int | None = None) -> bytes:
        """Read the body, and decompress it; `max_bytes` replaces the limit of all bodies.

        Raises:
            DataRefused: it is damaged, or its chunks are.
            EncodingRefused: it is compressed in another way than gzip or deflate.
            TooLarge: it is longer than the limit, compressed or not.
            Overloaded: the bodies in memory would exceed their limit.
            BodyTimeout: it did not arrive in time.
            ClientLeft: the connection ended before the whole body had arrived.
        """
        limit = max_bytes or self._limits.body_bytes
        headers = request.headers
        coding = ""
        if "content-encoding" in headers:
            coding = coding_of(_joined(headers, "content-encoding"))
        given = headers.get("content-length")
        length = _undeclared(headers) if given is None else int(given)
        if length is not None and length > limit:
            raise _too_large(limit)
        task = asyncio.current_task()
        assert task is not None
        # asyncio.timeout would cost a tenth of the whole request
        late = asyncio.get_running_loop().call_later(self._limits.body_s, task.cancel)
        try:
            if length is not None and length <= _SMALL_BODY and not coding:
                body = await self._read_small(request, length)
            else:
                inflater = Inflater(coding) if coding and length != 0 else None
                body = await self._read_pieces(request, length, inflater, limit)
        except asyncio.CancelledError:
            raise BodyTimeout(f"the body did not arrive within {self._limits.body_s:g} s") from None
        finally:
            late.cancel()
        request.started = time.perf_counter()
        return body

    async def _read_small(self, request: Request, length: int) -> bytes:
        self._hold(request, length)
        try:
            whole: bytes = await request.protocol()
        except RuntimeError as err:  # granian raises it when the connection has ended
            raise ClientLeft("the connection ended within the body") from err
        return whole

    async def _read_pieces(
        self, request: Request, length: int | None, inflater: Inflater | None, limit: int
    ) -> bytes:
        """Read piece by piece: each is counted as it arrives, not as it was declared."""
        body = bytearray()  # a list of tiny chunks would take many times their size
        received = ends = 0
        async for piece in request.protocol:
            if not piece:
                ends += 1
                continue
            received += len(piece)
            if received > limit:
                raise _too_large(limit)
            if inflater is None:
                self._hold(request, len(piece))
                body += piece
                continue
            for slice_ in inflater.feed(piece):
                if len(body) + len(slice_) > limit:
                    raise _too_large(limit)
                self._hold(request, len(slice_))
                body += slice_
                await asyncio.sleep(0)
        if length is not None and received != length:
            raise ClientLeft("the connection ended within the body")
        if ends > 1 and not (received and _may_have_trailers(request.headers)):
            raise DataRefused("the chunks of the body are broken, or end in undeclared trailers")
        if inflater is not None:
            inflater.finish()
        return bytes(body)

    def _hold(self, request: Request, size: int) -> None:
        if self.held + size > self._limits.total_bytes:
            raise Overloaded("the bodies in memory reach their limit: try again in a moment")
        request.held += size
        self.held += size


def _undeclared(headers: Any) -> int | None:
    """Return the length of a body that declares none: 0, or None if it comes in chunks.

    If a request declares both, hyper, which granian is built on, drops the length, reads the
    chunks, and closes the connection afterwards, so that nothing can be smuggled past a proxy.
    """
    if "transfer-encoding" not in headers:
        return 0
    given = _joined(headers, "transfer-encoding")
    if given.lower() != "chunked":
        raise DataRefused(f"a body may have the transfer-encoding chunked, got {given[:40]!r}")
    return None


def _may_have_trailers(headers: Any) -> bool:
    """Whether trailers, which are dropped, may follow the chunks of this body.

    granian gives one empty piece at the end of a body. Before it, it gives another one for
    trailers, and the same for a broken chunk. So trailers are taken only where the request
    declares them, and where a body that was cut shows it: compressed ones, JSON, and tensors
    with their sizes do; the bytes of a single tensor do not.
    """
    length = header_of(headers, HEADER_LENGTH)
    raw = length is not None and not length.strip("0")
    return "trailer" in headers and ("content-encoding" in headers or not raw)


def _joined(headers: Any, name: str) -> str:
    header_of(headers, name)
    return ", ".join(headers.get_all(name)).strip()


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"a body may have {limit} bytes: send less")
