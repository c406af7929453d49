"""The REST side of the server, as an RSGI application: HTTP in, `Service` calls, HTTP out.

RSGI is granian's own interface; over ASGI the same application answers a third fewer requests.
"""

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import orjson

from serving import metrics
from serving.access import Access
from serving.board import OPERATIONS
from serving.errors import (
    BodyTimeout,
    ClientLeft,
    DataRefused,
    LengthRequired,
    MethodNotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    TooLarge,
    VaeError,
)
from serving.openapi import openapi_document
from serving.page import PAGE
from serving.protocol import InferRequest, InferResponse
from serving.rest_codec import BINARY, HEADER_LENGTH, JSON, decode_request, encode_response
from serving.service import Service
from serving.tracing import Tracer

LOG = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

Headers = list[tuple[str, str]]


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all of them together, may take."""

    body_bytes: int = 16 * 2**20
    """Largest body."""
    total_bytes: int = 256 * 2**20
    """Bodies in memory at a time."""
    body_s: float = 30.0
    """Seconds in which a body must come."""


Handler = Callable[["RestServer", "Request"], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table of addresses, which the OpenAPI document is made of too."""

    method: str
    path: str
    handler: Handler
    summary: str
    open: bool = False
    """Answers without an API key."""
    limited: bool = True


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


class RestServer:
    """Answers HTTP requests; the callable that granian is given.

    Args:
        service: what all transports share.
        access: the API key, if there is one.
        limits: sizes and times.
        tracer: where spans go.
        access_log: whether to log every request.
    """

    def __init__(
        self,
        service: Service,
        access: Access,
        limits: Limits,
        tracer: Tracer,
        *,
        access_log: bool = False,
    ) -> None:
        self.service = service
        self.access = access
        self.limits = limits
        self.tracer = tracer
        self.access_log = access_log
        self.held = 0
        """Bytes of bodies in memory."""

    def __rsgi__(self, scope: Scope, protocol: Any) -> Awaitable[None]:
        """Answer one request; refuse in a few microseconds where too many are under way."""
        if self.service.admission.full and not (self.access.api_key or self.access_log):
            length = scope.headers.get("content-length")
            match = _PATTERNS[0][1].fullmatch(scope.path)
            # a small body is in a buffer already; a larger one must be read before an answer
            if match and scope.method == "POST" and length and len(length) <= _SMALL_DIGITS:
                return self._refuse(match["name"], protocol)
        return self._answer(scope, protocol)

    def _refuse(self, name: str, protocol: Any) -> Awaitable[None]:
        if name in OPERATIONS:
            self.service.board.add("requests", name, "rest", Overloaded.status)
        protocol.response_bytes(Overloaded.status, _REFUSAL_HEADERS, _REFUSAL)
        return _DONE

    async def _answer(self, scope: Scope, protocol: Any) -> None:
        headers = scope.headers
        request = Request(headers, protocol, started=time.perf_counter())
        given = headers.get("x-request-id")
        request.id = given if given and _REQUEST_ID.fullmatch(given) else ""
        route = None
        try:
            route = self._find(scope, request)
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
            self.held -= request.held
        if route is not None and route.handler is infer:
            self.service.record("rest", request.name, answer.status, request.started)
        if self.access_log:
            self._log(scope, request, answer)
        protocol.response_bytes(answer.status, self._headers(request, answer), answer.body)

    def _find(self, scope: Scope, request: Request) -> Route:
        methods = []
        for route, pattern in _PATTERNS:
            match = pattern.fullmatch(scope.path)
            if match is None:
                continue
            if scope.method != route.method and (scope.method, route.method) != ("HEAD", "GET"):
                methods.append(route.method)
                continue
            for name, value in match.groupdict().items():
                setattr(request, name, value)
            return route
        if methods:
            allowed = ", ".join(dict.fromkeys(methods))
            raise MethodNotAllowed(f"{scope.path} takes {allowed}, got {scope.method}", allowed)
        raise NotFound(f"no address {scope.path!r}: see /docs")

    def _refusal(self, request: Request, err: VaeError) -> Answer:
        if err.status == 500:
            LOG.error("%s", err, extra={"request_id": request.id})
        return _error(err.status, str(err), err.headers)

    def _headers(self, request: Request, answer: Answer) -> Headers:
        headers = [("content-type", answer.content_type), *answer.headers]
        if request.id:
            headers.append(("x-request-id", request.id))
        if self.service.draining:
            headers.append(("connection", "close"))
        return headers

    def _log(self, scope: Scope, request: Request, answer: Answer) -> None:
        LOG.info(
            "%s %s %d",
            scope.method,
            scope.path,
            answer.status,
            extra={
                "request_id": request.id,
                "ms": round((time.perf_counter() - request.started) * 1e3, 3),
            },
        )

    async def infer(self, decoded: InferRequest, protocol: Any) -> InferResponse:
        """Run a request; drop it from the queue where its client leaves.

        Raises:
            ClientLeft: it did.
        """
        answer = self.service.infer(decoded)
        if not self.service.served.batcher.running:  # it will not wait
            return await answer
        task = asyncio.ensure_future(answer)
        left = asyncio.ensure_future(protocol.client_disconnect())
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            left.cancel()
            return task.result()
        task.cancel()
        raise ClientLeft("the client left")

    async def read_body(self, request: Request) -> bytes:
        """Give the body; it counts as in memory until the request is answered.

        Raises:
            LengthRequired: it comes in chunks; granian does not say where such a body broke off.
            TooLarge: it is longer than a body may be.
            Overloaded: bodies take all the memory they may.
            BodyTimeout: it did not come in time.
            ClientLeft: it broke off.
        """
        headers = request.headers
        if headers.get("content-encoding", "identity") != "identity":
            raise DataRefused("a body must come as it is, without a content-encoding")
        given = headers.get("content-length")
        if given is None and "transfer-encoding" in headers:
            raise LengthRequired("a body must have a content-length: it may not come in chunks")
        length = int(given or 0)
        if length > self.limits.body_bytes:
            raise TooLarge(f"a body may have {self.limits.body_bytes} bytes: send fewer rows")
        task = asyncio.current_task()
        assert task is not None
        # asyncio.timeout would cost a tenth of the whole request
        late = asyncio.get_running_loop().call_later(self.limits.body_s, task.cancel)
        try:
            body = await self._read(request, length)
        except asyncio.CancelledError:
            raise BodyTimeout(f"the body did not come within {self.limits.body_s:g} s") from None
        finally:
            late.cancel()
        request.started = time.perf_counter()
        return body

    async def _read(self, request: Request, length: int) -> bytes:
        if length <= _SMALL_BODY:
            self._hold(request, length)
            try:
                whole: bytes = await request.protocol()
            except RuntimeError as err:  # granian's errors of a connection that ended
                raise ClientLeft("the body broke off") from err
            return whole
        chunks: list[bytes] = []
        async for chunk in request.protocol:
            self._hold(request, len(chunk))  # as it comes: who declares much need not send it
            chunks.append(chunk)
        if request.held != length:
            raise ClientLeft("the body broke off")
        return b"".join(chunks)

    def _hold(self, request: Request, size: int) -> None:
        if self.held + size > self.limits.total_bytes:
            raise Overloaded("requests take all the memory they may: try again in a moment")
        request.held += size
        self.held += size


async def infer(server: RestServer, request: Request) -> Answer:
    """Run one operation."""
    service = server.service
    _, operation = service.operation(request.name, request.version)
    header_length = request.headers.get(HEADER_LENGTH)
    body = await server.read_body(request)
    with service.admission:
        decoded, binary = decode_request(operation, request.version, body, header_length)
        with server.tracer.span(request.headers, operation.name) as span:
            response = await server.infer(decoded, request.protocol)
            span.tell(response.version, decoded)
        started = time.perf_counter()
        content, length = encode_response(response, binary)
        service.board.observe("encode", operation.name, time.perf_counter() - started)
    if length is None:
        return Answer(content)
    return Answer(content, BINARY, headers=((HEADER_LENGTH, str(length)),))


async def server_live(server: RestServer, request: Request) -> Answer:
    """Whether the process answers."""
    return _json({"live": True})


async def server_ready(server: RestServer, request: Request) -> Answer:
    """Whether requests should be sent here, which version answers, and what was refused."""
    service = server.service
    content: dict[str, Any] = {"ready": service.ready}
    with contextlib.suppress(NotReady):
        content |= {"name": service.served.name, "version": service.served.version}
    if service.refused:
        content["refused"] = service.refused
    return _json(content, 200 if service.ready else 503)


async def server_metadata(server: RestServer, request: Request) -> Answer:
    """Name, version and extensions of the server."""
    return _json(server.service.server_metadata())


async def model_ready(server: RestServer, request: Request) -> Answer:
    """Whether the operation is loaded."""
    service = server.service
    service.operation(request.name, request.version)
    ready = service.ready and service.is_loaded(request.name)
    return _json({"name": request.name, "ready": ready}, 200 if ready else 503)


async def model_metadata(server: RestServer, request: Request) -> Answer:
    """Names, datatypes and shapes of the tensors."""
    return _json(server.service.model_metadata(request.name, request.version))


async def model_config(server: RestServer, request: Request) -> Answer:
    """The operation as Triton's configuration has it."""
    return _json(server.service.model_config(request.name, request.version))


async def model_statistics(server: RestServer, request: Request) -> Answer:
    """Counts and times since the start."""
    return _json(server.service.statistics(request.name, request.version))


async def repository_index(server: RestServer, request: Request) -> Answer:
    """The operations and whether each is loaded."""
    content = _optional_object(await server.read_body(request))
    return _json(server.service.index(only_ready=content.get("ready") is True))


async def repository_load(server: RestServer, request: Request) -> Answer:
    """Take an operation in again, and look at the registry now."""
    if _optional_object(await server.read_body(request)).get("parameters"):
        raise DataRefused("load takes no parameters: versions come from the registry")
    server.service.set_loaded(request.name, True)
    return Answer()


async def repository_unload(server: RestServer, request: Request) -> Answer:
    """Take an operation out, on all workers."""
    _optional_object(await server.read_body(request))
    server.service.set_loaded(request.name, False)
    return Answer()


async def webhook(server: RestServer, request: Request) -> Answer:
    """MLflow says that an alias moved: look at the registry now."""
    server.access.check_webhook(request.headers, await server.read_body(request))
    server.service.hint()
    return Answer(status=202)


async def prometheus(server: RestServer, request: Request) -> Answer:
    """Metrics over all workers."""
    service = server.service
    return Answer(metrics.render(service.board, service.names()), metrics.CONTENT_TYPE)


async def openapi(server: RestServer, request: Request) -> Answer:
    """The OpenAPI document of this model."""
    return _json(openapi_document(ROUTES, server.service.served))


async def docs(server: RestServer, request: Request) -> Answer:
    """A page to read and try."""
    return Answer(PAGE, "text/html; charset=utf-8")


_MODEL = "/v2/models/{name}"
_VERSION = "/v2/models/{name}/versions/{version}"

ROUTES = (
    Route("POST", f"{_MODEL}/infer", infer, "Run an operation"),
    Route("POST", f"{_VERSION}/infer", infer, "Run an operation in one version"),
    Route("GET", "/v2/health/live", server_live, "Is the process alive", open=True),
    Route("GET", "/v2/health/ready", server_ready, "Should requests be sent here", open=True),
    Route("GET", "/v2", server_metadata, "Server metadata"),
    Route("GET", "/v2/models/stats", model_statistics, "Statistics of all operations"),
    Route("GET", _MODEL, model_metadata, "Model metadata"),
    Route("GET", _VERSION, model_metadata, "Model metadata of one version"),
    Route("GET", f"{_MODEL}/ready", model_ready, "Is the operation loaded", open=True),
    Route("GET", f"{_VERSION}/ready", model_ready, "Is this version loaded", open=True),
    Route("GET", f"{_MODEL}/config", model_config, "Triton model configuration"),
    Route("GET", f"{_VERSION}/config", model_config, "Triton model configuration"),
    Route("GET", f"{_MODEL}/stats", model_statistics, "Statistics"),
    Route("GET", f"{_VERSION}/stats", model_statistics, "Statistics of one version"),
    Route("POST", "/v2/repository/index", repository_index, "List the operations"),
    Route("POST", "/v2/repository/models/{name}/load", repository_load, "Take an operation in"),
    Route("POST", "/v2/repository/models/{name}/unload", repository_unload, "Take it out"),
    Route("POST", "/webhooks/mlflow", webhook, "An alias moved: look now", open=True),
    Route("GET", "/metrics", prometheus, "Prometheus metrics"),
    Route("GET", "/openapi.json", openapi, "This document", open=True),
    Route("GET", "/docs", docs, "A page to read and try", open=True),
)

_SMALL_BODY = 2**16
_SMALL_DIGITS = 4  # of a Content-Length: below 10,000 bytes
_REFUSAL = orjson.dumps({"error": "too many requests are under way: try again in a moment"})
_REFUSAL_HEADERS = [("content-type", JSON), *Overloaded.headers]


class _Done:
    """An awaitable that has nothing to wait for."""

    def __await__(self) -> Generator[None]:
        yield from ()


_DONE = _Done()
_PATTERNS = [(r, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", r.path))) for r in ROUTES]


def _json(content: Any, status: int = 200) -> Answer:
    return Answer(orjson.dumps(content), status=status)


def _error(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(orjson.dumps({"error": message}), status=status, headers=headers)


def _optional_object(body: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as err:
        raise DataRefused(f"the body is no JSON: {err}") from err
    if not isinstance(content, dict):
        raise DataRefused(f"the body must be a JSON object, got {type(content).__name__}")
    return content
