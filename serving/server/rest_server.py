"""The REST side of the server: take requests on the event loop, and give each its answer.

`serving.server.rest_routes` has the table of routes, and the function that answers each.
"""

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from urllib.parse import unquote

import orjson

from serving.errors import ClientLeft, MethodNotAllowed, NotFound, Overloaded, VaeError
from serving.http1.exchange import Exchange
from serving.http1.server import Http1Server
from serving.protocol.http_body import JSON
from serving.server.auth import Access
from serving.server.cors import Cors
from serving.server.live_file import LiveFile
from serving.server.logging_config import log_answer
from serving.server.request_body import BodyReader
from serving.server.rest_messages import Answer, Headers, Limits, Request, Route
from serving.server.service import Service
from serving.server.shared_counters import OPERATIONS
from serving.server.tracing import Tracer
from serving.server.turns import Turns

LOG = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

_KNOWN_PATHS = 64  # whose routes are not looked for again
_SHORT = 2**8
"""Characters of a path that is remembered: longer ones could fill the memory."""
_MAX_MESSAGE = 300
"""Characters of an error; some tell what was sent, which may be long."""
_REFUSAL = orjson.dumps({"error": "too many requests are in progress: try again in a moment"})
_REFUSAL_HEADERS = [("content-type", JSON), *Overloaded.headers]


class RestServer:
    """Answers HTTP requests on the event loop that starts it, over `serving.http1`.

    Args:
        service: the inference service that all transports share.
        routes: the table of routes.
        access: the API key, if there is one.
        limits: limits of sizes and times.
        tracer: makes the spans.
        cors: the origins whose pages may use the server.
        host: the name or address that the server listens on.
        access_log: whether to log every request.
        max_connections: connections at a time.
        live: what the observer of the live rows knows.
    """

    def __init__(
        self,
        service: Service,
        routes: Sequence[Route],
        access: Access,
        limits: Limits,
        tracer: Tracer,
        *,
        cors: Cors | None = None,
        host: str = "",
        access_log: bool = False,
        max_connections: int = 1024,
        live: LiveFile | None = None,
    ) -> None:
        self.service = service
        self.access = access
        self.cors = cors or Cors()
        self.host = host
        self.bodies = BodyReader(limits)
        self.live = live or LiveFile()
        self._routes = [(route, _pattern(route.path)) for route in routes]
        self._find = lru_cache(_KNOWN_PATHS)(self._find_route)
        self.tracer = tracer
        self.access_log = access_log
        self._refuses_at_once = not (access.api_key or access_log or self.cors.origins)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns = Turns(service.room)
        self._http1 = Http1Server(
            self.handle, self._refuse_malformed, max_connections, limits.body_s
        )

    async def start(self, host: str, port: int, certificate: tuple[Path, Path] | None) -> None:
        """Listen, over TLS if given files of a certificate chain and its private key."""
        await self._http1.start(host, port, certificate)

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, and give those in progress `grace_s` seconds to end."""
        await self._http1.stop(grace_s)

    def handle(self, exchange: Exchange) -> None:
        """Answer a request: at once, or an inference that has arrived when its turn comes."""
        self._loop = self._loop or asyncio.get_running_loop()
        if exchange.complete and (name := self._inference(exchange)):
            self._turns.take(self._loop, partial(self._begin, exchange, name))
        else:
            self._begin(exchange)

    def _inference(self, exchange: Exchange) -> str:
        """Return the name of the operation, if it is to be run."""
        with contextlib.suppress(VaeError):
            route, names = self._route(exchange.head.method, path_of(exchange.head.target))
            if route.counted:
                return names["name"]
        return ""

    def _begin(self, exchange: Exchange, name: str = "", refuse: bool = False) -> None:
        if refuse and self._refuses_at_once:
            self._refuse(name, exchange)
        else:  # with a name and a loop, since asyncio would write and look for one each time
            exchange.task = asyncio.Task(self.answer(exchange), loop=self._loop, name="request")

    def _refuse(self, name: str, exchange: Exchange) -> None:
        if name in OPERATIONS:
            self.service.counters.add("requests", name, "rest", Overloaded.status)
        exchange.respond(Overloaded.status, _REFUSAL_HEADERS, _REFUSAL, close=self.service.draining)

    def _refuse_malformed(self, exchange: Exchange, status: int, reason: str) -> None:
        answer = _error(status, reason)
        exchange.respond(status, [("content-type", JSON)], answer.body, close=True)

    def check_room(self, size: int) -> None:
        """Check that there is room for an answer of so many bytes.

        Raises:
            Overloaded: clients do not take the answers that are there.
        """
        self._http1.check_room(size)

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request."""
        head = exchange.head
        headers = head.headers
        request = Request(exchange, started=time.perf_counter())
        given = headers.get("x-request-id")
        request.id = given if given and _REQUEST_ID.fullmatch(given) else ""
        route = None
        path = path_of(head.target)
        try:
            if self.cors.origins and head.method == "OPTIONS" and self.cors.is_preflight(headers):
                answer = self._preflight(path, headers)
            else:
                route, names = self._route(head.method, path)
                request.name, request.version = names.get("name", ""), names.get("version", "")
                request.file = names.get("file", "")
                if self.access.api_key and not route.open:
                    self.access.check(headers.get("authorization"), headers.get("x-api-key"))
                answer = await route.handler(self, request)
        except VaeError as err:
            answer = self._refusal(request, err)
        except asyncio.CancelledError:
            answer = self._refusal(request, ClientLeft("the client closed the connection"))
        except Exception:
            request.id = request.id or uuid.uuid4().hex
            LOG.exception("internal error", extra={"request_id": request.id})
            answer = _error(500, f"internal error, request {request.id}")
        finally:
            self.bodies.release(request)
        if route is not None and route.counted:
            self.service.record("rest", request.name, answer.status, request.started)
        if self.access_log:
            text = f"{head.method} {path} {answer.status}"
            log_answer(LOG, text, request.id, request.started)
        fields = self._headers(request, answer)
        exchange.respond(answer.status, fields, answer.body, close=self.service.draining)

    def _preflight(self, path: str, headers: Mapping[str, str]) -> Answer:
        methods = [route.method for route, pattern in self._routes if pattern.fullmatch(path)]
        if not methods:
            raise _no_path(path)
        methods += ["HEAD"] if "GET" in methods else []
        return Answer(status=204, headers=self.cors.preflight(headers, methods))

    def _route(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        return (self._find if len(path) <= _SHORT else self._find_route)(method, path)

    def _find_route(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Return a path's route, and what stands for the names in it."""
        methods = []
        for route, pattern in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if method == route.method or (method, route.method) == ("HEAD", "GET"):
                return route, match.groupdict()
            methods.append(route.method)
        if methods:
            allowed = ", ".join(dict.fromkeys(methods))
            raise MethodNotAllowed(f"{path[:100]} takes {allowed}, got {method}", allowed)
        raise _no_path(path)

    def _refusal(self, request: Request, err: VaeError) -> Answer:
        if err.status == 500:
            LOG.error("%s", err, extra={"request_id": request.id})
        return _error(err.status, str(err), err.headers)

    def _headers(self, request: Request, answer: Answer) -> Headers:
        headers = [("content-type", answer.content_type), *answer.headers]
        if self.cors.origins:
            headers += self.cors.headers(request.headers.get("origin"))
        if request.id:
            headers.append(("x-request-id", request.id))
        return headers


def path_of(target: bytes) -> str:
    """Return the path of a request's target, decoded (RFC 9112, section 3.2; RFC 3986)."""
    return _known_path(target) if len(target) <= _SHORT else _path(target)


def _path(target: bytes) -> str:
    path = target.partition(b"?")[0]
    if path[:1] != b"/":  # a whole address, as proxies get it
        _, found, rest = path.partition(b"://")
        path = b"/" + rest.partition(b"/")[2] if found else path
    return unquote(path.decode("latin-1"), errors="replace")


_known_path = lru_cache(4 * _KNOWN_PATHS)(_path)


def _pattern(path: str) -> re.Pattern[str]:
    """Match a path with and without a slash at its end, which some clients always send."""
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path.rstrip("/")) + "/?")


def _no_path(path: str) -> NotFound:
    return NotFound(f"no path {path[:100]!r}: see /docs")


def _error(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]} …"
    return Answer(orjson.dumps({"error": message}), status=status, headers=headers)
