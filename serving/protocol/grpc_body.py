"""The tensors and parameters of gRPC's messages: read a request, write an answer.

Source: Open Inference Protocol gRPC API, raw and typed contents.
"""

from collections.abc import Mapping
from typing import Any

from serving.errors import DataRefused
from serving.protocol import open_inference_pb2 as pb
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

_CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}


def decode_request(message: Any) -> InferRequest:
    """Read a ModelInferRequest, whose tensors are all raw or all typed.

    Raises:
        DataRefused: the sizes of its tensors do not match.
        UsageRefused: a parameter would change the answer and is not supported.
    """
    refuse_many(message.inputs, "inputs")
    refuse_many(message.outputs, "outputs")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise DataRefused(f"{len(message.inputs)} inputs need as many raw contents, got {len(raw)}")
    inputs: dict[str, Array] = {}
    for place, tensor in enumerate(message.inputs):
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        if name in inputs:
            raise DataRefused(f"{name} is given twice")
        refuse_unsupported(name, read_parameters(tensor.parameters))
        if raw:
            inputs[name] = from_bytes(name, datatype, shape, memoryview(raw[place]))
        else:
            field = _CONTENTS.get(datatype, "fp32_contents")
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
        parameters=read_parameters(message.parameters),
    )


def encode_response(response: InferResponse, *, raw: bool) -> Any:
    """Write a ModelInferResponse with raw or typed tensors."""
    reply = pb.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    for name, array in response.outputs.items():
        datatype = DATATYPES[array.dtype]
        tensor = reply.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            reply.raw_output_contents.append(array.tobytes())
        else:
            getattr(tensor.contents, _CONTENTS[datatype]).extend(array.reshape(-1).tolist())
    return reply


def read_parameters(fields: Mapping[str, Any]) -> dict[str, Parameter]:
    """Return the parameters that have a value; one without is absent, like null in JSON."""
    parameters: dict[str, Parameter] = {}
    for name, value in fields.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is not None:
            parameters[name] = getattr(value, choice)
    return parameters
