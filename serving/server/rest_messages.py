"""The values of REST: an address, a request whose address is known, and an answer."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from serving.protocol.http_body import JSON


class Scope(Protocol):
    """What RSGI says of a request."""

    method: str
    path: str
    headers: Any


class Answer(NamedTuple):
    """Status, body and its type; further headers."""

    body: bytes = b""
    content_type: str = JSON
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Any, "Request"], Awaitable[Answer]]
"""Takes the `RestServer` and a request."""


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table of addresses, which the OpenAPI document is made of too."""

    method: str
    path: str
    handler: Handler
    summary: str
    open: bool = False
    """Answers without an API key."""
    counted: bool = False
    """An inference: counted, and refused at once where too many are under way."""


@dataclass(slots=True)
class Request:
    """A request whose address is known: path parameters, headers, body."""

    headers: Any
    protocol: Any
    name: str = ""
    version: str = ""
    id: str = ""
    started: float = 0.0
    held: int = 0
    """Bytes of its body, as counted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all of them together, may take."""

    body_bytes: int = 16 * 2**20
    """Largest body."""
    total_bytes: int = 256 * 2**20
    """Bodies in memory at a time."""
    body_s: float = 30.0
    """Seconds in which a body must come."""
