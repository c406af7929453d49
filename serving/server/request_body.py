"""Read the bodies of requests: whole, in chunks, compressed; within limits of size and time.

A body counts as in memory from its first byte until its request is answered.
"""

import asyncio
import time
from collections.abc import Mapping

from serving.errors import BodyTimeout, DataRefused, Overloaded, TooLarge
from serving.http1.limits import BODY_AHEAD
from serving.server.compression import Inflater, coding_of
from serving.server.rest_messages import Limits, Request, header_of


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
        exchange, headers = request.exchange, request.headers
        coding = coding_of(header_of(headers, "content-encoding") or "")
        given = headers.get("content-length")
        length = _undeclared(headers) if given is None else int(given)
        if length is not None and length > limit:
            raise _too_large(limit)
        late = None
        if not exchange.complete:
            error = BodyTimeout(f"the body did not arrive within {self._limits.body_s:g} s")
            # asyncio.timeout would cost more
            loop = asyncio.get_running_loop()
            late = loop.call_later(self._limits.body_s, exchange.fail, error)
        try:
            if length is not None and length <= BODY_AHEAD and not coding:
                self._hold(request, length)
                body = await exchange.read()
            else:
                inflater = Inflater(coding) if coding and length != 0 else None
                body = await self._read_pieces(request, inflater, limit)
        finally:
            if late is not None:
                late.cancel()
        request.started = time.perf_counter()
        return body

    async def _read_pieces(self, request: Request, inflater: Inflater | None, limit: int) -> bytes:
        """Read piece by piece: each is counted as it arrives, not as it was declared."""
        body = bytearray()  # a list of tiny chunks would take many times their size
        received = 0
        async for piece in request.exchange.pieces():
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
        if inflater is not None:
            inflater.finish()
        return bytes(body)

    def _hold(self, request: Request, size: int) -> None:
        if self.held + size > self._limits.total_bytes:
            raise Overloaded("the bodies in memory reach their limit: try again in a moment")
        request.held += size
        self.held += size


def _undeclared(headers: Mapping[str, str]) -> int | None:
    """Return the length of a body that declares none: 0, or None if it comes in chunks.

    A request that declares both has been refused: something could be smuggled past a proxy.
    """
    given = header_of(headers, "transfer-encoding")
    if given is None:
        return 0
    if given.strip().lower() != "chunked":
        raise DataRefused(f"a body may have the transfer-encoding chunked, got {given[:40]!r}")
    return None


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"a body may have {limit} bytes: send less")
