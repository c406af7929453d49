"""The OpenAPI document of a served model, made from the table of routes and its tensors."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from serving.operations import Tensor
from serving.protocol.messages import wire_tensor
from serving.server.rest_messages import Route
from serving.server.service import LoadedVersion

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_REFUSALS = {
    "400": "The request does not fit the operation",
    "401": "No valid API key",
    "403": "A page of another site may not do this",
    "404": "No such model or version",
    "405": "The path takes another method",
    "408": "The body did not arrive in time",
    "411": "The body has no content-length",
    "413": "The body is too large",
    "429": "The queue is full: try again after Retry-After seconds",
    "500": "An internal error, with the request's id",
    "503": "Not ready: try again after Retry-After seconds",
    "504": "The deadline passed in the queue",
}


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
            "schemas": {"Error": _ERROR, "InferRequest": _infer_request(served)},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "x-operations": {
            name: {
                "inputs": [_tensor(tensor) for tensor in operation.inputs],
                "outputs": [_tensor(tensor) for tensor in operation.outputs],
            }
            for name, operation in served.engine.operations.items()
        },
        "x-picture-range": served.bundle.picture_range(),
    }


def _operation(route: Route, served: LoadedVersion) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", route.path)
    content: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method}{route.path}").strip("_").lower(),
        "parameters": [_path_parameter(name, served) for name in names],
        "responses": {
            "200": {"description": "Done"},
            **{status: _refusal(text) for status, text in _REFUSALS.items()},
        },
        "security": [{}] if route.open else [{}, {"bearer": []}, {"key": []}],
    }
    if route.path.startswith("/webhooks"):
        content["responses"]["202"] = {
            "description": "The server will ask the registry for a new version"
        }
    if route.method == "POST":
        infer = route.path.endswith("/infer")
        schema = {"$ref": "#/components/schemas/InferRequest"} if infer else {"type": "object"}
        content["requestBody"] = {
            "required": infer,
            "content": {"application/json": {"schema": schema}},
        }
    return content


def _tensor(tensor: Tensor) -> dict[str, Any]:
    """Describe a tensor with names for its free axes: two axes of -1 need not be equal."""
    return {**wire_tensor(tensor), "shape": tensor.shape}


def _refusal(text: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _path_parameter(name: str, served: LoadedVersion) -> dict[str, Any]:
    values = [served.version] if name == "version" else [*served.engine.operations]
    schema = {"type": "string", "enum": values}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _infer_request(served: LoadedVersion) -> dict[str, Any]:
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"enum": ["x", "z", "eps"]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"enum": ["UINT8", "FP32"]},
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
    }
    output = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    parameters = {
        "seed": {"type": "integer", "minimum": 0},
        "num_samples": {"type": "integer", "minimum": 1, "maximum": 4096},
        "timeout": {"type": "integer", "minimum": 0, "description": "microseconds"},
        "binary_data_output": {"type": "boolean"},
    }
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object", "properties": parameters},
            "inputs": {"type": "array", "items": tensor},
            "outputs": {"type": "array", "items": output},
        },
        "example": {"parameters": {"seed": 7, "num_samples": 3}, "inputs": []},
    }
