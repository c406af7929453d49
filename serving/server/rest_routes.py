"""The routes of REST, one line each, and the function that answers each."""

import contextlib
import time
from typing import Any

import orjson

from serving.errors import DataRefused, Forbidden, NotFound, NotReady
from serving.live_status import LiveStatus
from serving.protocol.http_body import (
    BINARY,
    HEADER_LENGTH,
    JSON,
    decode_request,
    encode_response,
    load_object,
    parameters_of,
)
from serving.protocol.messages import refuse_to_load
from serving.server import metrics
from serving.server.compression import MIN_BYTES, accepted_coding, compress
from serving.server.cors import is_own_host
from serving.server.live_file import warnings_of
from serving.server.openapi import openapi_document
from serving.server.page import DOCS, FILE_HEADERS, FILES, INDEX, PAGE_HEADERS
from serving.server.rest_messages import Answer, Request, Route, header_of
from serving.server.rest_server import RestServer
from serving.server.status import describe_status


async def infer(server: RestServer, request: Request) -> Answer:
    """Run one operation."""
    service = server.service
    if request.headers.get("sec-fetch-site") == "cross-site":
        _check_site(server, request)
    served, operation = service.operation(request.name, request.version)
    header_length = header_of(request.headers, HEADER_LENGTH)
    body = await server.bodies.read(request)
    with service.admission:
        decoded, binary = decode_request(
            operation, request.version, body, header_length, served.columns
        )
        with server.tracer.span(request.headers, operation.name) as span:
            response = await service.infer(decoded)
            span.annotate(response.version, decoded)
        started = time.perf_counter()
        size = sum(each.nbytes for each in response.outputs.values())
        server.check_room(size)
        content, length = encode_response(response, binary)
        service.counters.observe("encode", operation.name, time.perf_counter() - started)
        kind = JSON if length is None else BINARY
        headers = [] if length is None else [(HEADER_LENGTH, str(length))]
        # inferences alone, as in Triton: tritonclient's aio client asks for compression with every
        # request, and decompresses no other answers
        if len(content) >= MIN_BYTES:
            headers.append(("vary", "accept-encoding"))  # for caches
            accept = request.headers.get("accept-encoding")
            if accept and (coding := accepted_coding(accept)):
                content = await compress(content, coding)
                headers.append(("content-encoding", coding))
    return Answer(content, kind, headers=headers)


async def server_live(server: RestServer, request: Request) -> Answer:
    """Answer; any answer shows that the process is alive."""
    return _json({"live": True})


async def server_ready(server: RestServer, request: Request) -> Answer:
    """Report whether the server takes requests, which version answers, and which was refused."""
    service = server.service
    content: dict[str, Any] = {"ready": service.ready}
    with contextlib.suppress(NotReady):
        content |= {"name": service.served.name, "version": service.served.version}
    if service.refused:
        content["refused"] = service.refused
    if warnings := warnings_of(_live(server)):
        content["warnings"] = warnings
    return _json(content, 200 if service.ready else 503)


async def server_metadata(server: RestServer, request: Request) -> Answer:
    """Report the name, version and extensions of the server."""
    return _json(server.service.server_metadata())


async def model_ready(server: RestServer, request: Request) -> Answer:
    """Report whether the operation is loaded."""
    service = server.service
    service.operation(request.name, request.version)
    ready = service.ready and service.is_loaded(request.name)
    return _json({"name": request.name, "ready": ready}, 200 if ready else 503)


async def model_metadata(server: RestServer, request: Request) -> Answer:
    """Describe the tensors: names, datatypes and shapes."""
    return _json(server.service.model_metadata(request.name, request.version))


async def model_config(server: RestServer, request: Request) -> Answer:
    """Describe the operation as a Triton model configuration."""
    return _json(server.service.model_config(request.name, request.version))


async def model_statistics(server: RestServer, request: Request) -> Answer:
    """Report counts and times since the start."""
    return _json(server.service.statistics(request.name, request.version))


async def repository_index(server: RestServer, request: Request) -> Answer:
    """List the operations, and whether each is loaded."""
    content = load_object(await server.bodies.read(request), optional=True)
    ready = content.get("ready")
    if type(ready) not in (bool, type(None)):
        raise DataRefused(f"ready must be true or false, got {ready!r}")
    return _json(server.service.index(only_ready=bool(ready)))


async def repository_load(server: RestServer, request: Request) -> Answer:
    """Load an operation, on all workers, and poll the registry now."""
    _check_origin(server, request)
    content = load_object(await server.bodies.read(request), optional=True)
    refuse_to_load(parameters_of(content, "the request"))
    server.service.set_loaded(request.name, True)
    return Answer()


async def repository_unload(server: RestServer, request: Request) -> Answer:
    """Unload an operation, on all workers."""
    _check_origin(server, request)
    parameters_of(load_object(await server.bodies.read(request), optional=True), "the request")
    server.service.set_loaded(request.name, False)
    return Answer()


async def webhook(server: RestServer, request: Request) -> Answer:
    """Poll the registry now, since MLflow reports that an alias was moved."""
    # a limit of its own: anyone may send a webhook, and its signature is checked afterwards
    body = await server.bodies.read(request, MAX_WEBHOOK_BYTES)
    server.access.check_webhook(request.headers, body)
    server.service.request_poll()
    return Answer(status=202)


async def prometheus(server: RestServer, request: Request) -> Answer:
    """Report metrics, summed over all workers."""
    service = server.service
    text = metrics.render(service.counters, service.labels(), _live(server))
    return Answer(text, metrics.CONTENT_TYPE)


async def status(server: RestServer, request: Request) -> Answer:
    """Report what is served and why, counts and times, and what is known of the live rows."""
    return _json(describe_status(server.service, _live(server)))


async def openapi(server: RestServer, request: Request) -> Answer:
    """Return the OpenAPI document of this model."""
    return _json(openapi_document(ROUTES, server.service.served))


async def docs(server: RestServer, request: Request) -> Answer:
    """Return the page that documents the server and draws samples."""
    return Answer(DOCS, _HTML)


async def page(server: RestServer, request: Request) -> Answer:
    """Return the page to watch the server and to play with its model."""
    return Answer(INDEX, _HTML, headers=PAGE_HEADERS)


async def web_file(server: RestServer, request: Request) -> Answer:
    """Return a file of that page, or 304 if the browser has the same already."""
    file = FILES.get(request.file)
    if file is None:
        raise NotFound(f"no file {request.file[:100]!r} belongs to the page")
    headers = [*FILE_HEADERS, ("etag", file.etag)]
    if request.headers.get("if-none-match") == file.etag:
        return Answer(content_type=file.content_type, status=304, headers=headers)
    return Answer(file.content, file.content_type, headers=headers)


_HTML = "text/html; charset=utf-8"
MAX_WEBHOOK_BYTES = 2**14
_MODEL = "/v2/models/{name}"
_VERSION = "/v2/models/{name}/versions/{version}"

ROUTES = (
    Route("POST", f"{_MODEL}/infer", infer, "Run an operation", counted=True),
    Route("POST", f"{_VERSION}/infer", infer, "Run an operation in one version", counted=True),
    Route("GET", "/v2/health/live", server_live, "Whether the process is alive", open=True),
    Route("GET", "/v2/health/ready", server_ready, "Whether the server takes requests", open=True),
    Route("GET", "/v2", server_metadata, "Server metadata"),
    Route("GET", "/v2/models/stats", model_statistics, "Statistics of all operations"),
    Route("GET", _MODEL, model_metadata, "Model metadata"),
    Route("GET", _VERSION, model_metadata, "Model metadata of one version"),
    Route("GET", f"{_MODEL}/ready", model_ready, "Whether the operation is loaded", open=True),
    Route("GET", f"{_VERSION}/ready", model_ready, "Whether this version is loaded", open=True),
    Route("GET", f"{_MODEL}/config", model_config, "Triton model configuration"),
    Route("GET", f"{_VERSION}/config", model_config, "Triton model configuration"),
    Route("GET", f"{_MODEL}/stats", model_statistics, "Statistics"),
    Route("GET", f"{_VERSION}/stats", model_statistics, "Statistics of one version"),
    Route("POST", "/v2/repository/index", repository_index, "List the operations"),
    Route("POST", "/v2/repository/models/{name}/load", repository_load, "Load an operation"),
    Route("POST", "/v2/repository/models/{name}/unload", repository_unload, "Unload an operation"),
    Route("POST", "/webhooks/mlflow", webhook, "Poll the registry: an alias was moved", open=True),
    Route("GET", "/status", status, "What is served, counts, and what is known of live rows"),
    Route("GET", "/metrics", prometheus, "Prometheus metrics"),
    Route("GET", "/openapi.json", openapi, "This document", open=True),
    Route("GET", "/docs", docs, "A page to read and try", open=True),
    Route("GET", "/", page, "A page to watch and to play with", open=True),
    Route("GET", "/web/{file}", web_file, "A file of that page", open=True),
)


def _check_origin(server: RestServer, request: Request) -> None:
    """Refuse a page of another site: browsers send such a POST without asking the server first.

    Its owner can point a name at this server, so that the browser takes the page for one of ours. A
    page knows no API key; without one, only pages are served that no other's name can stand for.
    """
    origin, host = header_of(request.headers, "origin"), request.headers.get("host") or ""
    if origin is None or server.cors.names(origin):
        return
    if origin.partition("://")[2] != host:
        raise Forbidden(f"a page of {origin[:100]!r} may not change this server")
    if not (server.access.api_key or is_own_host(host, server.host)):
        raise Forbidden(
            f"a page of {origin[:100]!r} may not change this server, which has no API key: name "
            "the page's origin with --cors-origin"
        )


def _check_site(server: RestServer, request: Request) -> None:
    """Refuse the request of a page of another site that may not read the answer anyway.

    Browsers send it all the same, if it is plain, and its rows would be among the live ones.
    """
    origin = header_of(request.headers, "origin") or ""
    if not server.cors.allows(origin):
        raise Forbidden(f"a page of {origin[:100]!r} may not use this server: see --cors-origin")


def _live(server: RestServer) -> LiveStatus | None:
    return server.live.read(server.service.labels()["digest"])


def _json(content: Any, status: int = 200) -> Answer:
    return Answer(orjson.dumps(content), status=status)
