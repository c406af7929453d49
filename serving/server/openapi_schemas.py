"""The schemas of the OpenAPI document: what requests and answers hold.

null stands for an absent value wherever a request leaves one out.
"""

from collections.abc import Collection, Mapping
from typing import Any

from serving.operations import Operation
from serving.protocol.column_tensors import DATATYPES
from serving.protocol.messages import wire_tensor

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
DATATYPE: Schema = {"type": "string", "enum": ["UINT8", "FP32"]}
SHAPE: Schema = {"type": "array", "items": COUNT}
EXAMPLE: Schema = {"parameters": {"seed": 7, "num_samples": 3}, "inputs": []}
"""A request of `sample` that can be sent unchanged."""
ANYTHING: Schema = {"type": "object", "additionalProperties": True}


def schemas(
    operations: Mapping[str, Operation], max_samples: int, columns: Collection[str] = ()
) -> dict[str, Schema]:
    """Return all schemas by their names; requests may have tensors of a table's `columns`."""
    datatype = {**DATATYPE, "enum": [*DATATYPES]} if columns else DATATYPE
    return {
        "Error": record(error=TEXT),
        "Operation": {"type": "string", "enum": [*operations]},
        **_requests(operations, max_samples, columns, datatype),
        **_answers(datatype, {} if columns else {"type": "number"}),
    }


def reference(name: str) -> Schema:
    """Refer to a schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(optional: Mapping[str, Schema] | None = None, **required: Schema) -> Schema:
    """Return the schema of an object with these properties."""
    schema: Schema = {"type": "object", "properties": {**required, **(optional or {})}}
    return {**schema, "required": list(required)} if required else schema


def or_null(schema: Schema) -> Schema:
    """Allow null in place of a value."""
    if "$ref" in schema:
        return {"oneOf": [schema, {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


def _list_of(name: str) -> Schema:
    return {"type": "array", "items": reference(name)}


def _requests(
    operations: Mapping[str, Operation],
    max_samples: int,
    columns: Collection[str],
    datatype: Schema,
) -> dict[str, Schema]:
    inputs = {tensor.name for operation in operations.values() for tensor in operation.inputs}
    outputs = {tensor.name for operation in operations.values() for tensor in operation.outputs}
    parameters = {
        "seed": {**COUNT, "maximum": 2**63 - 1, "description": "of the noise"},
        "num_samples": {"type": "integer", "minimum": 1, "maximum": max_samples},
        "timeout": {**COUNT, "description": "microseconds"},
        "binary_data_output": BOOLEAN,
    }
    if columns:
        parameters["content_type"] = {**TEXT, "description": "pd for a tensor a column"}
    request = {
        "id": or_null(TEXT),
        "parameters": or_null(reference("InferParameters")),
        "inputs": or_null(_list_of("InferInput")),
        "outputs": or_null(_list_of("InferRequestedOutput")),
    }
    return {
        "InferRequest": {
            **record(request),
            "example": EXAMPLE,
        },
        "InferParameters": record({name: or_null(each) for name, each in parameters.items()}),
        "InferInput": record(
            {
                "data": {"type": "array", "items": {}},
                "parameters": or_null(reference("InferInputParameters")),
            },
            name={"type": "string", "enum": sorted(inputs.union(columns))},
            shape=SHAPE,
            datatype=datatype,
        ),
        "InferInputParameters": record(
            {
                "binary_data_size": or_null(COUNT),
                **({"content_type": or_null(TEXT)} if columns else {}),
            }
        ),
        "InferRequestedOutput": record(
            {"parameters": or_null(reference("InferRequestedOutputParameters"))},
            name={"type": "string", "enum": sorted(outputs)},
        ),
        "InferRequestedOutputParameters": record({"binary_data": or_null(BOOLEAN)}),
        "RepositoryIndexRequest": record({"ready": or_null(BOOLEAN)}),
        "RepositoryModelRequest": record({"parameters": or_null(ANYTHING)}),
    }


def _answers(datatype: Schema, value: Schema) -> dict[str, Schema]:
    names = {"type": "array", "items": TEXT}
    return {
        "InferResponse": record(
            {"id": TEXT, "parameters": ANYTHING},
            model_name=TEXT,
            model_version=TEXT,
            outputs=_list_of("InferOutput"),
        ),
        "InferOutput": record(
            {
                "data": {"type": "array", "items": value},
                "parameters": record({"binary_data_size": COUNT}),
            },
            name=TEXT,
            shape=SHAPE,
            datatype=datatype,
        ),
        "ServerLive": record(live=BOOLEAN),
        "ServerReady": record(
            {
                "name": TEXT,
                "version": TEXT,
                "refused": record(version=TEXT, reason=TEXT),
                "warnings": names,
            },
            ready=BOOLEAN,
        ),
        "ModelReady": record(name=TEXT, ready=BOOLEAN),
        "ServerMetadata": record(name=TEXT, version=TEXT, extensions=names),
        "ModelMetadata": record(
            name=TEXT,
            versions=names,
            platform=TEXT,
            inputs=_list_of("TensorMetadata"),
            outputs=_list_of("TensorMetadata"),
            parameters=record(
                {"columns": {"type": "array", "items": ANYTHING}, "x_columns": names},
                model=TEXT,
                digest=TEXT,
            ),
        ),
        "TensorMetadata": record(
            name=TEXT,
            datatype=DATATYPE,
            shape={"type": "array", "items": {"type": "integer", "minimum": -1}},
        ),
        "ModelConfig": {
            **record(name=TEXT, platform=TEXT, backend=TEXT, max_batch_size=COUNT),
            "additionalProperties": True,
        },
        "ModelStatistics": record(model_stats={"type": "array", "items": ANYTHING}),
        "RepositoryIndex": _list_of("RepositoryModel"),
        "RepositoryModel": record(name=TEXT, version=TEXT, state=TEXT, reason=TEXT),
        "Anything": ANYTHING,
    }


def describe_operations(operations: Mapping[str, Operation]) -> dict[str, Any]:
    """Describe each operation's tensors with names for their free axes: not all -1 are equal."""
    return {
        name: {
            side: [{**wire_tensor(tensor), "shape": tensor.shape} for tensor in tensors]
            for side, tensors in (("inputs", operation.inputs), ("outputs", operation.outputs))
        }
        for name, operation in operations.items()
    }
