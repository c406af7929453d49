"""Read and write the bodies of REST: JSON, or JSON followed by binary tensors.

Source: Open Inference Protocol, inference request and response JSON objects; the binary tensor data
extension. The header `Inference-Header-Content-Length` gives the length of the JSON; 0 means that
the body is one raw tensor.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson

from serving.errors import DataRefused, UsageRefused
from serving.operations import Operation
from serving.protocol.column_tensors import (
    BY_COLUMNS,
    CONTENT_TYPE,
    columns_sent,
    datatype_of_column,
    read_bytes,
    read_values,
    wire_column,
    write_bytes,
)
from serving.protocol.messages import (
    DATATYPES,
    Array,
    InferRequest,
    InferResponse,
    Layouts,
    Parameter,
    datatype_of,
    from_bytes,
    from_values,
    read_layouts,
    refuse_many,
    refuse_unsupported,
)

JSON = "application/json"
BINARY = "application/octet-stream"
HEADER_LENGTH = "inference-header-content-length"
_DIGITS = 12
_SHORT, _SMALL = 2**10, 2**19
"""Bytes of JSON, and of tensors behind it, of which it is remembered what the JSON says."""
_BEFORE_NUMBERS = 512
"""Bytes at the start of a request, within which most have the names of their JSON."""


class BinaryOutputs(NamedTuple):
    """Which outputs a request wants in binary: `named` decides for some, `default` for the rest."""

    default: bool = False
    named: Mapping[str, bool] | None = None

    def wants(self, name: str) -> bool:
        """Whether to send this output in binary."""
        return self.default if self.named is None else self.named.get(name, self.default)


def decode_request(
    operation: Operation,
    version: str,
    body: bytes,
    header_length: str | None,
    columns: Collection[str] = (),
) -> tuple[InferRequest, BinaryOutputs]:
    """Read the body of an inference request; `columns` are those of the model's table, if any.

    Raises:
        DataRefused: it does not follow the protocol, or the sizes of its tensors do not match.
        UsageRefused: it asks for what there is not.
    """
    if header_length is None:
        head, tail = body, memoryview(b"")
    else:
        split = _header_length(header_length, len(body))
        if split == 0:
            return _raw_request(operation, version, body), BinaryOutputs(default=True)
        head, tail = body[:split], memoryview(body)[split:]
        if not columns and split <= _SHORT and len(tail) <= _SMALL:
            if known := _read_head(head, len(tail)):
                request, binary, layouts = known
                inputs = read_layouts(layouts, body, split)
                return request._replace(
                    model=operation.name, version=version, inputs=inputs
                ), binary
    request, binary = _decode(head, tail, columns, operation)
    return request._replace(model=operation.name, version=version), binary


@lru_cache(128)
def _read_head(head: bytes, size: int) -> tuple[InferRequest, BinaryOutputs, Layouts] | None:
    """Read the JSON before tensors that are all in binary, which most clients repeat.

    It is read with as many zeros behind it; None if a tensor is in the JSON itself.
    """
    request, binary = _decode(head, memoryview(bytes(size)))
    layouts = tuple((n, a.dtype, a.shape, a.size, a.nbytes) for n, a in request.inputs.items())
    whole = sum(layout[-1] for layout in layouts) == size
    return (request._replace(inputs={}), binary, layouts) if whole else None


def _decode(
    head: bytes, tail: memoryview, columns: Collection[str] = (), operation: Operation | None = None
) -> tuple[InferRequest, BinaryOutputs]:
    """Read a request of the operation, which only `columns` need."""
    content = load_object(head)
    parameters = parameters_of(content, "the request")
    given_id = content.get("id")
    binary = _binary_outputs(parameters, _list(content, "outputs"))
    entries = _list(content, "inputs")
    refuse_many(entries, "inputs", len(columns))
    gaps = bool(columns)
    if columns and operation:
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
        columns = columns_sent(operation, columns, names, parameters)
    booleans = _holds(head, b"true", b"u") or _holds(head, b"false", b"l")
    inputs = _decode_tensors(entries, tail, columns, booleans=booleans, gaps=gaps)
    text = "" if given_id is None else _text(given_id, "id")
    request = InferRequest("", inputs, "", text, [*(binary.named or ())], parameters)
    if columns:
        request = request._replace(
            columns={name: array for name, array in inputs.items() if name in columns},
            inputs={name: array for name, array in inputs.items() if name not in columns},
        )
    return request, binary


def encode_response(response: InferResponse, binary: BinaryOutputs) -> tuple[bytes, int | None]:
    """Write the body of an answer; return it, and the length of its JSON if tensors follow."""
    outputs: list[dict[str, Any]] = []
    tail: list[memoryview] = []
    for name, array in response.outputs.items():
        datatype = DATATYPES.get(array.dtype)
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
        if datatype is None:
            output |= {"datatype": datatype_of_column(array), "shape": (len(array), 1)}
            if binary.wants(name):
                tail.append(memoryview(write_bytes(array)))
                output["parameters"] = {"binary_data_size": tail[-1].nbytes}
            else:
                output["data"] = array.tolist() if array.dtype == object else array
        elif binary.wants(name):
            tail.append(np.ascontiguousarray(array).data)  # copied once, into the body
            output["parameters"] = {"binary_data_size": array.nbytes}
        else:
            if not np.isfinite(array).all():
                raise DataRefused(
                    f"{name} is not finite, which JSON cannot express: ask for binary"
                )
            output["data"] = np.ascontiguousarray(array).reshape(-1)
        outputs.append(output)
    content: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    content["outputs"] = outputs
    if response.id:
        content["id"] = response.id
    if response.parameters:
        content["parameters"] = {**response.parameters}
    head = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((head, *tail)), len(head)) if tail else (head, None)


def encode_request(request: InferRequest) -> tuple[bytes, int]:
    """Write a request with all tensors in binary, and return the length of its JSON too."""
    inputs, tail = [], []
    given = [(name, DATATYPES[a.dtype], a.shape, a.tobytes()) for name, a in request.inputs.items()]
    for name, values in request.columns.items():
        column = wire_column(values)
        given.append((name, datatype_of_column(column), column.shape, write_bytes(column)))
    for name, datatype, shape, binary in given:
        tail.append(binary)
        size = {"binary_data_size": len(binary)}
        inputs.append({"name": name, "datatype": datatype, "shape": shape, "parameters": size})
    parameters = {**request.parameters, "binary_data_output": True}
    if request.columns:
        parameters[CONTENT_TYPE] = BY_COLUMNS
    content: dict[str, Any] = {"id": request.id, "parameters": parameters, "inputs": inputs}
    head = orjson.dumps(content)
    return b"".join((head, *tail)), len(head)


def decode_response(body: bytes, header_length: str | None) -> InferResponse:
    """Read the body of an answer."""
    split = len(body) if header_length is None else _header_length(header_length, len(body))
    content = load_object(body[:split])
    entries, tail = content["outputs"], memoryview(body)[split:]
    graph = DATATYPES.values()
    columns = [entry["name"] for entry in entries if entry["datatype"] not in graph]
    return InferResponse(
        model=content["model_name"],
        version=content["model_version"],
        id=content.get("id") or "",
        outputs=_decode_tensors(entries, tail, columns, booleans=True),
        parameters=parameters_of(content, "the answer"),
    )


def _holds(head: bytes, word: bytes, letter: bytes) -> bool:
    """Whether a word is in a text; `letter` is the third of the word.

    A letter is found many times faster than a word, and hardly any follows where numbers begin.
    """
    if word in head[:_BEFORE_NUMBERS]:
        return True
    place = head.find(letter, _BEFORE_NUMBERS - len(word) + 3)
    return place >= 0 and head.find(word, place - 2) >= 0


def _header_length(text: str, length: int) -> int:
    digits = text.isascii() and text.isdigit() and len(text) <= _DIGITS
    if not digits or int(text) > length:
        raise DataRefused(
            f"Inference-Header-Content-Length must be from 0 to the body's {length}, "
            f"got {text[:20]!r}"
        )
    return int(text)


def _raw_request(operation: Operation, version: str, body: bytes) -> InferRequest:
    """Read a body that is the first tensor alone; its length gives the number of rows."""
    tensor = operation.inputs[0]
    sizes = [axis for axis in tensor.shape[1:] if isinstance(axis, int)]
    width = int(np.prod(sizes)) * np.dtype(tensor.dtype).itemsize
    if len(body) % width:
        raise DataRefused(f"a row of {tensor.name} has {width} bytes, got a body of {len(body)}")
    array = from_bytes(
        tensor.name, datatype_of(tensor), [len(body) // width, *sizes], memoryview(body)
    )
    return InferRequest(operation.name, {tensor.name: array}, version)


def _decode_tensors(
    entries: Sequence[Any],
    tail: memoryview,
    columns: Collection[str],
    *,
    booleans: bool,
    gaps: bool = False,
) -> dict[str, Array]:
    """Read tensors; those in `columns` are columns of a table, and `x` may have `gaps`."""
    arrays: dict[str, Array] = {}
    start = 0
    for entry in entries:
        name = _text(_object(entry, "an input").get("name"), "name of an input")
        if name in arrays:
            raise DataRefused(f"{name} is given twice")
        parameters = parameters_of(entry, name)
        refuse_unsupported(name, parameters)
        size = parameters.get("binary_data_size")
        if size is None:
            if "data" not in entry:
                raise DataRefused(f"{name} has neither data nor a binary_data_size")
            datatype, shape, values = entry.get("datatype"), entry.get("shape"), entry["data"]
            if name in columns:
                kind = parameters.get(CONTENT_TYPE)
                arrays[name] = read_values(name, datatype, shape, values, kind)
            else:
                arrays[name] = from_values(
                    name, datatype, shape, values, booleans=booleans, gaps=gaps and name == "x"
                )
            continue
        if type(size) is not int or not 0 <= size <= len(tail) - start:
            raise DataRefused(
                f"binary_data_size of {name} must be from 0 to the {len(tail) - start} bytes "
                f"that are left, got {size!r}"
            )
        content = tail[start : start + size]
        datatype, shape = entry.get("datatype"), entry.get("shape")
        if name in columns:
            kind = parameters.get(CONTENT_TYPE)
            arrays[name] = read_bytes(name, datatype, shape, content, kind)
        else:
            arrays[name] = from_bytes(name, datatype, shape, content)
        start += size
    if start != len(tail):
        raise DataRefused(f"{len(tail) - start} bytes follow the last tensor")
    return arrays


def _binary_outputs(request: Mapping[str, Parameter], entries: Sequence[Any]) -> BinaryOutputs:
    default = request.get("binary_data_output", False)
    if type(default) is not bool:
        raise UsageRefused(f"binary_data_output must be true or false, got {default!r}")
    refuse_many(entries, "outputs")
    named: dict[str, bool] = {}
    for entry in entries:
        name = _text(_object(entry, "an output").get("name"), "name of an output")
        if name in named:
            raise UsageRefused(f"the output {name} is asked for twice")
        parameters = parameters_of(entry, name)
        refuse_unsupported(name, parameters)
        binary = parameters.get("binary_data", default)
        if type(binary) is not bool:
            raise UsageRefused(f"binary_data of {name} must be true or false, got {binary!r}")
        named[name] = binary
    return BinaryOutputs(default, named)


def load_object(head: bytes, *, optional: bool = False) -> dict[str, Any]:
    """Parse a JSON object; if it is optional, nothing and null stand for an empty one.

    Raises:
        DataRefused: it is not JSON, or not an object.
    """
    try:
        content = orjson.loads(head or b"null" if optional else head)
    except orjson.JSONDecodeError as err:
        raise DataRefused(f"the body is not JSON: {err}") from err
    return {} if content is None and optional else _object(content, "the body")


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataRefused(f"{what} must be a JSON object, got {type(value).__name__}")
    return value


def _list(content: Mapping[str, Any], name: str) -> list[Any]:
    entries = content.get(name)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise DataRefused(f"{name} must be a list, got {type(entries).__name__}")
    return entries


def parameters_of(content: Mapping[str, Any], what: str) -> Mapping[str, Parameter]:
    """Return the parameters of a request, a tensor or an output; null stands for an absent one.

    Raises:
        DataRefused: they are not a JSON object.
    """
    parameters = content.get("parameters")
    if parameters is None:
        return {}
    values = _object(parameters, f"parameters of {what}")
    if None not in values.values():
        return values
    return {name: value for name, value in values.items() if value is not None}


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise DataRefused(f"{what} must be text, got {value!r}")
    return value
