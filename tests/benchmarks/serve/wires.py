"""The wire formats: make a request from rows, and read rows from an answer.

Bodies are those of usual clients: compact JSON, with flat data in V2 and nested lists elsewhere.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tests.benchmarks.serve.inputs import Array

MODEL = "reconstruct"
V2_PATH = f"/v2/models/{MODEL}/infer"
GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"
HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Request:
    """A POST, ready to be sent again and again."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wire:
    """One format of requests and answers."""

    name: str
    encode: Callable[[Array], Request]
    decode: Callable[[Mapping[str, str], bytes], Array]
    """Reads rows from headers, in lower case, and a body."""
    grpc: bool = False


def plain_json(path: str, key_in: str, key_out: str | None) -> Wire:
    """A format of `{key_in: rows}` and `{key_out: rows}`, or of rows alone."""

    def encode(x: Array) -> Request:
        return Request(path, _dumps({key_in: x.tolist()}), {"content-type": "application/json"})

    def decode(headers: Mapping[str, str], body: bytes) -> Array:
        answer = json.loads(body)
        return np.array(answer[key_out] if key_out else answer, np.float32)

    return Wire("JSON", encode, decode)


def _encode_json(x: Array) -> Request:
    tensor = {"name": "x", "shape": x.shape, "datatype": "UINT8", "data": x.ravel().tolist()}
    return Request(V2_PATH, _dumps({"inputs": [tensor]}), {"content-type": "application/json"})


def _decode_json(headers: Mapping[str, str], body: bytes) -> Array:
    (output,) = json.loads(body)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def _encode_binary(x: Array) -> Request:
    size = {"binary_data_size": x.nbytes}
    tensor = {"name": "x", "shape": x.shape, "datatype": "UINT8", "parameters": size}
    wanted = {"name": "x_loc", "parameters": {"binary_data": True}}
    header = _dumps({"inputs": [tensor], "outputs": [wanted]})
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return Request(V2_PATH, header + x.tobytes(), headers)


def _decode_binary(headers: Mapping[str, str], body: bytes) -> Array:
    split = int(headers[HEADER_LENGTH])
    (output,) = json.loads(body[:split])["outputs"]
    return np.frombuffer(body[split:], np.float32).reshape(output["shape"])


def _encode_grpc(x: Array) -> Request:
    """Write a ModelInferRequest without generated code."""
    shape = b"".join(_varint(size) for size in x.shape)
    tensor = _bytes_field(1, b"x") + _bytes_field(2, b"UINT8") + _bytes_field(3, shape)
    message = _bytes_field(1, MODEL.encode()) + _bytes_field(5, tensor)
    message += _bytes_field(7, x.tobytes())
    return grpc_request(message)


def grpc_request(message: bytes) -> Request:
    """Write a ModelInferRequest as a gRPC message."""
    headers = {"content-type": "application/grpc", "te": "trailers"}
    return Request(GRPC_PATH, b"\0" + len(message).to_bytes(4, "big") + message, headers)


def _decode_grpc(headers: Mapping[str, str], body: bytes) -> Array:
    message = dict(_fields(body[5:]))  # the bytes of the only output
    tensor = [value for number, value in _fields(message[5]) if number == 3]
    shape = [size for part in tensor for size in _varints(part)]
    return np.frombuffer(message[6], np.float32).reshape(shape)


def _dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _varints(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the length-delimited fields; the answer has no others."""
    at = 0

    def take() -> int:
        nonlocal at
        start = at
        while message[at] > 127:
            at += 1
        at += 1
        return next(_varints(message[start:at]))

    while at < len(message):
        key, size = take(), take()
        if key & 7 != 2:
            raise ValueError(f"the answer's field {key >> 3} is not length-delimited")
        yield key >> 3, message[at : at + size]
        at += size


V2_JSON = Wire("JSON", _encode_json, _decode_json)
V2_BINARY = Wire("binary", _encode_binary, _decode_binary)
V2_GRPC = Wire("gRPC", _encode_grpc, _decode_grpc, grpc=True)
