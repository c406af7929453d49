"""The tensors and parameters of gRPC's messages: read a request, write an answer.

Source: Open Inference Protocol gRPC API, raw and typed contents.
"""

from collections.abc import Collection, Mapping
from typing import Any

from serving.errors import DataRefused
from serving.operations import Operation
from serving.protocol import open_inference_pb2 as pb
from serving.protocol.column_tensors import (
    BYTES,
    CONTENT_TYPE,
    columns_sent,
    datatype_of_column,
    read_bytes,
    read_values,
    write_bytes,
)
from serving.protocol.messages import (
    DATATYPES,
    Array,
    InferRequest,
    InferResponse,
    Parameter,
    from_bytes,
    from_values,
    refuse_many,
    refuse_unsupported,
)

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}

_LENGTH_DELIMITED = 2
"""The wire type of protobuf for bytes and messages."""


def _tag(message: Any, field: str) -> bytes:
    number = message.DESCRIPTOR.fields_by_name[field].number
    return bytes([number << 3 | _LENGTH_DELIMITED])


_RAW_OUTPUT = _tag(pb.ModelInferResponse, "raw_output_contents")
_INFER_RESPONSE = _tag(pb.ModelStreamInferResponse, "infer_response")


def decode_request(
    message: Any, operation: Operation, columns: Collection[str] = ()
) -> InferRequest:
    """Read a ModelInferRequest, whose tensors are all raw or all typed.

    `columns` are those of the model's table, if it has one.

    Raises:
        DataRefused: the sizes of its tensors do not match.
        UsageRefused: a parameter would change the answer and is not supported.
    """
    refuse_many(message.inputs, "inputs", len(columns))
    refuse_many(message.outputs, "outputs")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise DataRefused(f"{len(message.inputs)} inputs need as many raw contents, got {len(raw)}")
    inputs: dict[str, Array] = {}
    table: dict[str, Array] = {}
    parameters = read_parameters(message.parameters)
    if columns:
        names = [tensor.name for tensor in message.inputs]
        columns = columns_sent(operation, columns, names, parameters)
    for place, tensor in enumerate(message.inputs):
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        if name in inputs or name in table:
            raise DataRefused(f"{name} is given twice")
        own = read_parameters(tensor.parameters)
        refuse_unsupported(name, own)
        if name in columns:
            content = memoryview(raw[place]) if raw else None
            table[name] = _read_column(tensor, content, own.get(CONTENT_TYPE))
        elif raw:
            inputs[name] = from_bytes(name, datatype, shape, memoryview(raw[place]))
        else:
            field = _CONTENTS["UINT8" if datatype == "UINT8" else "FP32"]
            values = [*getattr(tensor.contents, field)]
            inputs[name] = from_values(name, datatype, shape, values, booleans=False)
    for output in message.outputs:
        refuse_unsupported(output.name, read_parameters(output.parameters))
    return InferRequest(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        inputs=inputs,
        outputs=[output.name for output in message.outputs],
        parameters=parameters,
        columns=table,
    )


def _read_column(tensor: Any, content: memoryview | None, content_type: object) -> Array:
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    if content is not None:
        return read_bytes(name, datatype, shape, content, content_type)
    values = [*getattr(tensor.contents, _CONTENTS.get(datatype, "bytes_contents"))]
    if datatype == BYTES:
        values = [value.decode(errors="replace") for value in values]
    return read_values(name, datatype, shape, values, content_type)


def write_response(response: InferResponse, *, raw: bool) -> tuple[bytes | memoryview, ...]:
    """Write a ModelInferResponse with raw or typed tensors, in parts.

    Raw contents are the last field: they are sent from the memory that they are in.
    """
    reply = pb.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    for name, parameter in response.parameters.items():
        write_parameter(reply.parameters[name], parameter)
    contents: list[bytes | memoryview] = []
    for name, array in response.outputs.items():
        datatype = DATATYPES.get(array.dtype)
        if datatype is None:
            content = _write_column(reply, name, array, raw=raw)
            contents += [_RAW_OUTPUT + _varint(len(content)), content] if raw else []
            continue
        tensor = reply.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            flat = array.reshape(-1).view("u1")  # contiguous, or a copy that is
            contents += (_RAW_OUTPUT + _varint(flat.size), flat.data)
        else:
            getattr(tensor.contents, _CONTENTS[datatype]).extend(array.reshape(-1).tolist())
    return reply.SerializeToString(), *contents


def nest_response(parts: tuple[bytes | memoryview, ...]) -> tuple[bytes | memoryview, ...]:
    """Write a ModelStreamInferResponse around a ModelInferResponse."""
    return _INFER_RESPONSE + _varint(sum(map(len, parts))), *parts


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _write_column(reply: Any, name: str, column: Array, *, raw: bool) -> bytes:
    datatype = datatype_of_column(column)
    tensor = reply.outputs.add(name=name, datatype=datatype, shape=(len(column), 1))
    if raw:
        return write_bytes(column)
    values = column.tolist()
    if datatype == BYTES:
        values = [(value or "").encode() for value in values]
    getattr(tensor.contents, _CONTENTS[datatype]).extend(values)
    return b""


def write_parameter(field: Any, value: Parameter) -> None:
    """Set the field of a parameter's type."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    setattr(field, kinds[type(value)], value)


def read_parameters(fields: Mapping[str, Any]) -> dict[str, Parameter]:
    """Return the parameters that have a value; one without is absent, like null in JSON."""
    parameters: dict[str, Parameter] = {}
    for name, value in fields.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is not None:
            parameters[name] = getattr(value, choice)
    return parameters
