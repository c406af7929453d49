"""The values of the REST side: a route, a request whose route is known, an answer, and limits."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from serving.errors import DataRefused
from serving.http1.exchange import Exchange
from serving.protocol.http_body import JSON

Headers = list[tuple[str, str]]


class Answer(NamedTuple):
    """Body, its content type, status, and further headers."""

    body: bytes = b""
    content_type: str = JSON
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the body of one request, and of all bodies together."""

    body_bytes: int = 16 * 2**20
    """Largest body."""
    total_bytes: int = 256 * 2**20
    """Bytes of all bodies in memory at a time."""
    body_s: float = 30.0
    """Seconds within which a body must arrive, and before it the head of the request."""


@dataclass(slots=True)
class Request:
    """A request, and the path parameters of its route once that is known."""

    exchange: Exchange
    name: str = ""
    version: str = ""
    file: str = ""
    id: str = ""
    started: float = 0.0
    held: int = 0
    """Bytes of its body that are counted as in memory."""

    @property
    def headers(self) -> dict[str, str]:
        """Return its header fields, by their names in lower case."""
        return self.exchange.head.headers


def header_of(headers: Mapping[str, str], name: str) -> str | None:
    """Return the value of a header, or None if there is none.

    Raises:
        DataRefused: it is not ASCII: two readers might take it for different things.
    """
    value = headers.get(name)
    if value is not None and not value.isascii():
        raise DataRefused(f"the header {name} must be ASCII")
    return value


Handler = Callable[[Any, Request], Awaitable[Answer]]
"""Answers a request with the help of its `RestServer`, the first argument."""


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table of routes, from which the OpenAPI document is made too."""

    method: str
    path: str
    handler: Handler
    summary: str
    open: bool = False
    """Whether it answers without an API key."""
    counted: bool = False
    """Whether it is an inference: counted, and refused at once when the server is full."""
