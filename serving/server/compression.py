"""Content codings, gzip and deflate: read the bodies of requests, and write those of answers.

Both work in slices of `SLICE` bytes and let the event loop run in between, so that no body keeps
other requests waiting for longer than a slice. Source: RFC 9110, sections 8.4.1 and 12.5.3.
"""

import asyncio
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache

from serving.errors import DataRefused, EncodingRefused

CODINGS = ("gzip", "deflate")
SLICE = 2**17
MIN_BYTES = 1024
"""A smaller answer is sent as it is."""
LEVEL = 1
"""Higher levels take several times as long, and make answers a few percent smaller."""
_GZIP, _ZLIB, _RAW = 31, 15, -15  # wbits of zlib
_WEIGHTED = re.compile(r"\s*([\w*.-]+)\s*(?:;\s*[qQ]\s*=\s*([01](?:\.\d{0,3})?)\s*)?")
_MAX_ACCEPT = 512  # characters of an Accept-Encoding that is read


def coding_of(content_encoding: str) -> str:
    """Return the coding of a body: gzip, deflate, or nothing.

    Raises:
        EncodingRefused: it is another, or more than one.
    """
    coding = content_encoding.strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return ""
    if coding not in CODINGS:
        raise EncodingRefused(
            f"a body may have the content-encoding {' or '.join(CODINGS)}, got {coding[:40]!r}"
        )
    return coding


@lru_cache(128)
def accepted_coding(accept_encoding: str) -> str:
    """Return the coding that an Accept-Encoding prefers; nothing if that is no coding at all."""
    weights: dict[str, float] = {}
    for part in accept_encoding[:_MAX_ACCEPT].lower().split(","):
        if match := _WEIGHTED.fullmatch(part):
            weights[match[1].removeprefix("x-")] = float(match[2] or 1)
    others = weights.get("*", 0.0)
    best = max(CODINGS, key=lambda coding: weights.get(coding, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else ""


class Inflater:
    """Decompresses one body, piece by piece, to at most `SLICE` bytes at a time."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflate = zlib.decompressobj(_GZIP) if coding == "gzip" else None
        self._first = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield what the next piece of the body holds.

        Raises:
            DataRefused: it is damaged, or bytes follow its end.
        """
        if self._inflate is None:
            self._first += piece
            if len(self._first) < 2:
                return
            piece, self._first = self._first, b""
            self._inflate = zlib.decompressobj(_deflate_format(piece))
        if self._inflate.eof:
            raise DataRefused(f"bytes follow the end of the {self._coding} body")
        while not self._inflate.eof:
            try:
                slice_ = self._inflate.decompress(piece, SLICE)
            except zlib.error as err:
                raise DataRefused(f"the body is not valid {self._coding}: {err}") from err
            yield slice_
            if self._inflate.unused_data:
                raise DataRefused(f"bytes follow the end of the {self._coding} body")
            piece = self._inflate.unconsumed_tail
            if not piece and len(slice_) < SLICE:
                return

    def finish(self) -> None:
        """Check that the body has ended.

        Raises:
            DataRefused: it ends too early.
        """
        if self._inflate is None or not self._inflate.eof:
            raise DataRefused(f"the {self._coding} body ends too early")


def _deflate_format(head: bytes) -> int:
    """Tell zlib's format, which RFC 9110 calls deflate, from raw deflate, which some send."""
    return _ZLIB if head[0] & 15 == 8 and int.from_bytes(head[:2]) % 31 == 0 else _RAW


async def compress(body: bytes, coding: str) -> bytes:
    """Compress the body of an answer."""
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP if coding == "gzip" else _ZLIB)
    view = memoryview(body)
    pieces = []
    for start in range(0, len(view), SLICE):
        if start:
            await asyncio.sleep(0)
        pieces.append(deflate.compress(view[start : start + SLICE]))
    pieces.append(deflate.flush())
    return b"".join(pieces)
