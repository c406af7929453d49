"""The REST side of the server, an RSGI application: read HTTP, call `Service`, answer over HTTP.

RSGI is granian's own interface; over ASGI the same application answers a third fewer requests.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Generator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import orjson

from serving.errors import ClientLeft, MethodNotAllowed, NotFound, Overloaded, VaeError
from serving.protocol.http_body import JSON
from serving.protocol.messages import InferRequest, InferResponse
from serving.server.auth import Access
from serving.server.cors import Cors
from serving.server.live_file import LiveFile
from serving.server.logging_config import log_answer
from serving.server.request_body import BodyReader
from serving.server.rest_connections import RestConnections
from serving.server.rest_messages import Answer, Headers, Limits, Request, Route
from serving.server.service import Service
from serving.server.shared_counters import OPERATIONS
from serving.server.tracing import Tracer

LOG = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

_SMALL_DIGITS = 4  # digits of a Content-Length below 10,000 bytes
_KNOWN_PATHS = 64  # whose routes are not looked for again
LARGE = 2**12
"""Bytes of an answer that are counted until they have left; the kernel takes smaller ones."""
_MAX_MESSAGE = 300
"""Characters of an error; some tell what was sent, which may be long."""
_REFUSAL = orjson.dumps({"error": "too many requests are in progress: try again in a moment"})
_REFUSAL_HEADERS = [("content-type", JSON), *Overloaded.headers]


class _Done:
    """An awaitable that is done."""

    def __await__(self) -> Generator[None]:
        yield from ()


_DONE = _Done()


class Scope(Protocol):
    """The facts about a request that granian passes over RSGI."""

    method: str
    path: str
    headers: Any
    client: str


class RestServer:
    """Answers HTTP requests: the RSGI application that granian calls.

    Args:
        service: the inference service that all transports share.
        routes: the table of routes.
        access: the API key, if there is one.
        limits: limits of sizes and times.
        tracer: makes the spans.
        cors: the origins whose pages may use the server.
        host: the name or address that the server listens on.
        access_log: whether to log every request.
        connections: the connections that requests arrive on.
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
        connections: RestConnections | None = None,
        live: LiveFile | None = None,
    ) -> None:
        self.service = service
        self.access = access
        self.cors = cors or Cors()
        self.host = host
        self.bodies = BodyReader(limits)
        self.connections = connections or RestConnections(0, 0)
        self.live = live or LiveFile()
        self._routes = [(route, _pattern(route.path)) for route in routes]
        self._find = lru_cache(_KNOWN_PATHS)(self._find_route)
        self._counted = [pattern for route, pattern in self._routes if route.counted]
        self.tracer = tracer
        self.access_log = access_log
        self._refuses_at_once = not (access.api_key or access_log or self.cors.origins)

    def __rsgi__(self, scope: Scope, protocol: Any) -> Awaitable[None]:
        """Answer one request; refuse an inference within microseconds when the server is full."""
        if self.service.full and self._refuses_at_once:
            length = scope.headers.get("content-length")
            # a small body has been buffered already; a larger one must be read before an answer
            if scope.method == "POST" and length and len(length) <= _SMALL_DIGITS:
                for pattern in self._counted:
                    if match := pattern.fullmatch(scope.path):
                        return self._refuse(match["name"], protocol)
        return self._answer(scope, protocol)

    def _refuse(self, name: str, protocol: Any) -> Awaitable[None]:
        if name in OPERATIONS:
            self.service.counters.add("requests", name, "rest", Overloaded.status)
        protocol.response_bytes(Overloaded.status, _REFUSAL_HEADERS, _REFUSAL)
        return _DONE

    async def _answer(self, scope: Scope, protocol: Any) -> None:
        headers = scope.headers
        request = Request(headers, protocol, started=time.perf_counter())
        given = headers.get("x-request-id")
        request.id = given if given and _REQUEST_ID.fullmatch(given) else ""
        route = None
        try:
            if self.cors.origins and scope.method == "OPTIONS" and self.cors.is_preflight(headers):
                answer = self._preflight(scope)
            else:
                route, names = self._find(scope.method, scope.path)
                request.name, request.version = names.get("name", ""), names.get("version", "")
                request.file = names.get("file", "")
                if self.access.api_key and not route.open:
                    self.access.check(headers.get("authorization"), headers.get("x-api-key"))
                answer = await route.handler(self, request)
        except VaeError as err:
            answer = self._refusal(request, err)
        except Exception:
            request.id = request.id or uuid.uuid4().hex
            LOG.exception("internal error", extra={"request_id": request.id})
            answer = _error(500, f"internal error, request {request.id}")
        finally:
            self.bodies.release(request)
        if route is not None and route.counted:
            self.service.record("rest", request.name, answer.status, request.started)
        if self.access_log:
            text = f"{scope.method} {scope.path} {answer.status}"
            log_answer(LOG, text, request.id, request.started)
        protocol.response_bytes(answer.status, self._headers(request, answer), answer.body)
        if (size := len(answer.body)) >= LARGE:
            self.connections.answered(scope.client, size, time.monotonic())

    def _preflight(self, scope: Scope) -> Answer:
        methods = [route.method for route, pattern in self._routes if pattern.fullmatch(scope.path)]
        if not methods:
            raise _no_path(scope.path)
        methods += ["HEAD"] if "GET" in methods else []
        return Answer(status=204, headers=self.cors.preflight(scope.headers, methods))

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
        if self.service.draining:
            headers.append(("connection", "close"))
        return headers

    async def infer(self, decoded: InferRequest, protocol: Any) -> InferResponse:
        """Run a request; take it out of the queue when its client closes the connection.

        Raises:
            ClientLeft: the client closed the connection.
        """
        answer = self.service.infer(decoded)
        if not self.service.served.batcher.running:  # it will not be queued
            return await answer
        task = asyncio.ensure_future(answer)
        left = asyncio.ensure_future(protocol.client_disconnect())
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            left.cancel()
            return task.result()
        task.cancel()
        raise ClientLeft("the client closed the connection")


def _pattern(path: str) -> re.Pattern[str]:
    """Match a path with and without a slash at its end, which some clients always send."""
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path.rstrip("/")) + "/?")


def _no_path(path: str) -> NotFound:
    return NotFound(f"no path {path[:100]!r}: see /docs")


def _error(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]} …"
    return Answer(orjson.dumps({"error": message}), status=status, headers=headers)
