"""The OpenAPI document of a served model, made from the table of routes and its tensors."""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from serving.protocol.http_body import BINARY, HEADER_LENGTH, JSON
from serving.protocol.messages import MAX_ROWS
from serving.server.compression import CODINGS
from serving.server.openapi_schemas import (
    COUNT,
    EXAMPLE,
    TEXT,
    Schema,
    describe_operations,
    reference,
    schemas,
)
from serving.server.page import FILES
from serving.server.rest_messages import Route
from serving.server.service import LoadedVersion
from serving.server.status_schema import status_schemas

_REFUSALS = {
    "400": "The request does not fit the operation",
    "401": "No valid API key",
    "404": "No such model or version",
    "405": "The path takes another method",
    "500": "An internal error, with the request's id",
    "503": "Not ready: try again after Retry-After seconds",
}
_REFUSALS_OF_BODIES = {
    "403": "A page of another site may not do this",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": f"The body is compressed, but not by {' or '.join(CODINGS)}",
    "429": "The queue is full: try again after Retry-After seconds",
    "504": "The deadline passed in the queue",
}
_ANSWERS: Mapping[str, str] = {
    "infer": "InferResponse",
    "server_live": "ServerLive",
    "server_ready": "ServerReady",
    "server_metadata": "ServerMetadata",
    "model_ready": "ModelReady",
    "model_metadata": "ModelMetadata",
    "model_config": "ModelConfig",
    "model_statistics": "ModelStatistics",
    "repository_index": "RepositoryIndex",
    "repository_load": "",
    "repository_unload": "",
    "webhook": "",
    "prometheus": "text/plain",
    "openapi": "Anything",
    "docs": "text/html",
    "page": "text/html",
    "web_file": "text/css text/javascript image/svg+xml",
    "status": "Status",
}
"""What each handler answers: a schema, other media types than JSON, or nothing."""
_BODIES: Mapping[str, str] = {
    "infer": "InferRequest",
    "repository_index": "RepositoryIndexRequest",
    "repository_load": "RepositoryModelRequest",
    "repository_unload": "RepositoryModelRequest",
    "webhook": "Anything",
}
"""The schema of the body that each handler of a POST takes."""
_BYTES: Schema = {"type": "string", "format": "binary"}
_LENGTH = "Length of the JSON, which binary tensors follow; 0 for one raw tensor alone"


def openapi_document(routes: Sequence[Route], served: LoadedVersion) -> dict[str, Any]:
    """Return an OpenAPI 3.1 document, whose example is a request that can be sent unchanged."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, served)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{served.name}, version {served.version}",
            "version": version("vae-pipeline"),
            "description": "Open Inference Protocol, version 2. Each operation is a model.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                **schemas(served.engine.operations, MAX_ROWS, served.columns),
                **status_schemas(),
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "x-operations": describe_operations(served.engine.operations),
        "x-picture-range": served.bundle.picture_range(),
        "x-columns": served.bundle.manifest.columns,
        "x-row-by-columns": served.example,
    }


def _operation(route: Route, served: LoadedVersion) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", route.path)
    content: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method}{route.path}").strip("_").lower(),
        "parameters": [_path_parameter(name, served) for name in names],
        "responses": _responses(route),
        "security": [{}] if route.open else [{}, {"bearer": []}, {"key": []}],
    }
    if route.counted:
        header = {"name": HEADER_LENGTH, "in": "header", "required": False, "description": _LENGTH}
        content["parameters"].append({**header, "schema": COUNT})
    if route.method == "POST":
        bodies: dict[str, Any] = {JSON: {"schema": reference(_BODIES[route.handler.__name__])}}
        if route.counted and served.example:
            bodies[JSON]["examples"] = {
                "noise": {"summary": "for sample", "value": EXAMPLE},
                "columns": {"summary": "a row of the table, for score", "value": served.example},
            }
        if route.counted:
            bodies[BINARY] = {"schema": _BYTES}
        content["requestBody"] = {"required": route.counted, "content": bodies}
    return content


def _responses(route: Route) -> dict[str, Any]:
    refusals = _REFUSALS | (_REFUSALS_OF_BODIES if route.method == "POST" else {})
    answer = _ANSWERS[route.handler.__name__]
    done = "202" if route.handler.__name__ == "webhook" else "200"
    responses = {
        done: {"description": "Done", **_content(answer, binary=route.counted)},
        **{status: _refusal(text) for status, text in refusals.items()},
    }
    if answer in ("ServerReady", "ModelReady"):  # 503 says the same as 200
        either = {"anyOf": [reference(answer), reference("Error")]}
        responses["503"]["content"] = {JSON: {"schema": either}}
    return responses


def _content(answer: str, *, binary: bool) -> dict[str, Any]:
    """Describe the body of an answer that is no refusal."""
    if not answer:
        return {}
    if "/" in answer:
        return {"content": {kind: {"schema": TEXT} for kind in answer.split()}}
    content: dict[str, Any] = {"content": {JSON: {"schema": reference(answer)}}}
    if binary:
        content["content"][BINARY] = {"schema": _BYTES}
        content["headers"] = {HEADER_LENGTH: {"description": _LENGTH, "schema": COUNT}}
    return content


def _refusal(text: str) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": reference("Error")}}}


def _path_parameter(name: str, served: LoadedVersion) -> dict[str, Any]:
    parameter: dict[str, Any] = {"name": name, "in": "path", "required": True}
    if name == "file":
        return {**parameter, "schema": {**TEXT, "enum": [*FILES]}}
    if name == "version":  # no constant: a generated client outlives it
        return {**parameter, "schema": TEXT, "example": served.version}
    return {**parameter, "schema": reference("Operation")}
