"""Cross-origin requests: which pages of other origins a browser lets read the answers.

Source: the Fetch standard, section 3.2. Credentials, such as cookies, are never allowed: an API key
is sent in a header.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from serving.errors import UsageRefused
from serving.protocol.http_body import HEADER_LENGTH
from serving.server.rest_messages import Headers

ANY = "*"
MAX_AGE_S = 600
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,*]+")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_EXPOSED = f"{HEADER_LENGTH}, retry-after, x-request-id"


@dataclass(frozen=True, slots=True)
class Cors:
    """The origins whose pages may use a server; without any, no page of another origin may."""

    origins: frozenset[str] = frozenset()

    def names(self, origin: str) -> bool:
        """Whether the origin is allowed by its name, not as one of any."""
        return origin in self.origins

    def is_preflight(self, headers: Any) -> bool:
        """Whether a browser asks, with OPTIONS, what an allowed page may send."""
        origin = headers.get("origin")
        asks = "access-control-request-method" in headers
        return asks and bool(origin) and self.allows(origin)

    def preflight(self, headers: Any, methods: Iterable[str]) -> Headers:
        """Return the headers that answer a preflight: these methods, and the headers asked for."""
        asked = headers.get("access-control-request-headers")
        return [
            ("access-control-allow-methods", ", ".join(methods)),
            *([("access-control-allow-headers", asked)] if asked else []),
            ("access-control-max-age", str(MAX_AGE_S)),
            ("vary", "access-control-request-headers"),
        ]

    def headers(self, origin: str | None) -> Headers:
        """Return the headers of every answer."""
        if not self.origins:
            return []
        answer = [] if ANY in self.origins else [("vary", "origin")]
        if origin and self.allows(origin):
            answer += [
                ("access-control-allow-origin", ANY if ANY in self.origins else origin),
                ("access-control-expose-headers", _EXPOSED),
            ]
        return answer

    def allows(self, origin: str) -> bool:
        """Whether pages of the origin may read answers."""
        return ANY in self.origins or origin in self.origins


def is_own_host(host: str, bound: str) -> bool:
    """Whether a `Host` header can only mean this server, whoever owns names in the DNS.

    That is an address, localhost, or the name that the server was told to listen on.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ip_address(name)
    except ValueError:
        name = host.rpartition(":")[0] or host
        return bool(name) and name.lower() in ("localhost", bound.lower())
    return True


def parse_origins(given: Iterable[str]) -> Cors:
    """Return the origins as browsers write them: lower case, without a path or a default port.

    Raises:
        UsageRefused: one is no origin.
    """
    origins = set()
    for origin in given:
        text = origin.strip().lower().rstrip("/")
        if text != ANY and not _ORIGIN.fullmatch(text):
            raise UsageRefused(
                f"an origin must look like https://example.org or be *, got {origin!r}"
            )
        default = _DEFAULT_PORTS.get(text.partition(":")[0], "")
        origins.add(text.removesuffix(default))
    return Cors(frozenset(origins))
