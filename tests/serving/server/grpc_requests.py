"""Write requests of the Open Inference Protocol over gRPC, and read their answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from serving.protocol import open_inference_pb2 as pb
from serving.protocol.messages import DATATYPES
from serving.server.grpc_calls import SERVICE
from tests.serving.server.arrays import Arrays

Call = Callable[..., Any]
CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}
Status = grpc.StatusCode


def method(channel: Any, name: str, service: str = SERVICE) -> Any:
    """Return a call; the class of its answer has the name of the call."""
    reply = getattr(pb, f"{name}Response") if service == SERVICE else pb.HealthCheckResponse
    return channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=reply.FromString,
    )


def parameter(value: object) -> Any:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    chosen: dict[str, Any] = {kinds[type(value)]: value}
    return pb.InferParameter(**chosen)


def request_of(
    operation: str,
    arrays: Arrays,
    *,
    raw: bool = True,
    outputs: Sequence[str] = (),
    parameters: Mapping[str, object] | None = None,
    **more: Any,
) -> Any:
    message = pb.ModelInferRequest(
        model_name=operation,
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        parameters={name: parameter(value) for name, value in (parameters or {}).items()},
        **more,
    )
    for name, array in arrays.items():
        datatype = DATATYPES[array.dtype]
        tensor = message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            message.raw_input_contents.append(array.tobytes())
        else:
            getattr(tensor.contents, CONTENTS[datatype]).extend(array.reshape(-1).tolist())
    return message


def arrays_of(reply: Any, *, raw: bool = True) -> dict[str, np.ndarray]:
    assert len(reply.raw_output_contents) == (len(reply.outputs) if raw else 0)
    arrays = {}
    for place, tensor in enumerate(reply.outputs):
        dtype = {"FP32": "<f4", "UINT8": "u1"}[tensor.datatype]
        if raw:
            array = np.frombuffer(reply.raw_output_contents[place], dtype)
        else:
            array = np.array(getattr(tensor.contents, CONTENTS[tensor.datatype]), dtype)
        arrays[tensor.name] = array.reshape(tuple(tensor.shape))
    return arrays


def refused(call: Call, name: str, message: Any, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(name, message)
    error: Any = caught.value
    assert error.code() is code, error.details()
    return str(error.details())
