"""The gRPC side of the server: read messages, call `Service`, answer with messages.

Source: Open Inference Protocol gRPC API; Triton's extensions; the gRPC health checking protocol.
"""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from serving.errors import DataRefused, NotFound, NotReady, Unauthorized, UsageRefused, VaeError
from serving.protocol import open_inference_pb2 as pb
from serving.protocol.messages import (
    DATATYPES,
    Array,
    InferRequest,
    InferResponse,
    Parameter,
    from_bytes,
    from_values,
)
from serving.server.auth import Access
from serving.server.logging_config import log_answer
from serving.server.service import Service
from serving.server.tracing import Tracer

LOG = logging.getLogger(__name__)
SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
DATA_TYPES = {"TYPE_UINT8": 2, "TYPE_FP32": 11}
"""Triton's numbers for datatypes in a model configuration."""
_CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}
MAX_MESSAGE = 1000
"""Characters of an error message; clients refuse metadata of more than a few kilobytes."""
_SERVING, _NOT_SERVING = 1, 2

Call = Callable[["GrpcServer", Any, Any], Awaitable[Any]]


class GrpcServer:
    """Answers gRPC calls on the event loop that starts it.

    Args:
        service: the inference service that all transports share.
        access: the API key, if there is one.
        tracer: makes the spans.
        max_bytes: largest message that is read.
        max_calls: calls in progress at a time; more are refused.
        access_log: whether to log every call.
    """

    def __init__(
        self,
        service: Service,
        access: Access,
        tracer: Tracer,
        *,
        max_bytes: int,
        max_calls: int,
        access_log: bool = False,
    ) -> None:
        self.service = service
        self.access = access
        self.tracer = tracer
        self.access_log = access_log
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 1),
            ],
            maximum_concurrent_rpcs=max_calls,
        )
        for name, calls in ((SERVICE, CALLS), (HEALTH, HEALTH_CALLS)):
            handlers = {call: self._handler(call, *parts) for call, parts in calls.items()}
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name, handlers),)
            )

    async def start(self, address: str, certificate: tuple[bytes, bytes] | None) -> None:
        """Listen at `host:port`, over TLS if given a private key and a certificate chain."""
        if certificate is None:
            self._server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials([certificate])
            self._server.add_secure_port(address, credentials)
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, and give those in progress time to end."""
        await self._server.stop(grace_s)

    def _handler(self, name: str, call: Call, request: Any, needs_key: bool) -> Any:
        async def answer(message: Any, context: Any) -> Any:
            started = time.perf_counter()
            try:
                if self.access.api_key and needs_key:
                    metadata = dict(context.invocation_metadata())
                    self.access.check(metadata.get("authorization"), metadata.get("x-api-key"))
                return await call(self, message, context)
            except VaeError as err:
                if err.status == 500:
                    LOG.error("%s", err)
                if isinstance(err, Unauthorized) and call is infer:
                    self.service.record("grpc", message.model_name, err.status, 0.0)
                code = getattr(grpc.StatusCode, err.grpc_status)
                await context.abort(code, str(err)[:MAX_MESSAGE])
            except Exception:
                if context.cancelled():
                    raise
                given = uuid.uuid4().hex
                LOG.exception("internal error", extra={"request_id": given})
                await context.abort(grpc.StatusCode.INTERNAL, f"internal error, request {given}")
            finally:
                if self.access_log:
                    code = context.code() or grpc.StatusCode.OK.name
                    text = f"{name} {getattr(message, 'model_name', '')} {code}"
                    log_answer(LOG, text, getattr(message, "id", ""), started)

        return grpc.unary_unary_rpc_method_handler(
            answer, request.FromString, lambda reply: reply.SerializeToString()
        )


async def server_live(server: GrpcServer, message: Any, context: Any) -> Any:
    """Answer; any answer shows that the process is alive."""
    return pb.ServerLiveResponse(live=True)


async def server_ready(server: GrpcServer, message: Any, context: Any) -> Any:
    """Report whether the server takes requests."""
    return pb.ServerReadyResponse(ready=server.service.ready)


async def model_ready(server: GrpcServer, message: Any, context: Any) -> Any:
    """Report whether the operation is loaded."""
    service = server.service
    try:
        service.operation(message.name, message.version)
    except (NotFound, NotReady):
        return pb.ModelReadyResponse(ready=False)
    return pb.ModelReadyResponse(ready=service.ready and service.is_loaded(message.name))


async def server_metadata(server: GrpcServer, message: Any, context: Any) -> Any:
    """Report the name, version and extensions of the server."""
    return pb.ServerMetadataResponse(**server.service.server_metadata())


async def model_metadata(server: GrpcServer, message: Any, context: Any) -> Any:
    """Describe the tensors: names, datatypes and shapes."""
    content = server.service.model_metadata(message.name, message.version)
    del content["parameters"]
    return pb.ModelMetadataResponse(**content)


async def model_config(server: GrpcServer, message: Any, context: Any) -> Any:
    """Describe the operation as a Triton model configuration."""
    content = server.service.model_config(message.name, message.version)
    for side in ("input", "output"):
        for tensor in content[side]:
            tensor["data_type"] = DATA_TYPES[tensor["data_type"]]
    return pb.ModelConfigResponse(config=pb.ModelConfig(**content))


async def model_statistics(server: GrpcServer, message: Any, context: Any) -> Any:
    """Report counts and times since the start."""
    content = server.service.statistics(message.name, message.version)
    for entry in content["model_stats"]:
        del entry["batch_stats"]
    return pb.ModelStatisticsResponse(**content)


async def repository_index(server: GrpcServer, message: Any, context: Any) -> Any:
    """List the operations, and whether each is loaded."""
    return pb.RepositoryIndexResponse(models=server.service.index(only_ready=message.ready))


async def repository_load(server: GrpcServer, message: Any, context: Any) -> Any:
    """Load an operation, on all workers, and poll the registry now."""
    if message.parameters:
        raise DataRefused("load takes no parameters: versions come from the registry")
    server.service.set_loaded(message.model_name, True)
    return pb.RepositoryModelLoadResponse()


async def repository_unload(server: GrpcServer, message: Any, context: Any) -> Any:
    """Unload an operation, on all workers."""
    server.service.set_loaded(message.model_name, False)
    return pb.RepositoryModelUnloadResponse()


async def check_health(server: GrpcServer, message: Any, context: Any) -> Any:
    """Report the health of the server, or of the service that the request names."""
    if message.service not in ("", SERVICE):
        raise NotFound(f"no service {message.service!r}: there is {SERVICE}")
    return pb.HealthCheckResponse(status=_SERVING if server.service.ready else _NOT_SERVING)


async def infer(server: GrpcServer, message: Any, context: Any) -> Any:
    """Run one operation."""
    service = server.service
    started = time.perf_counter()
    status = 499
    try:
        with service.admission:
            _, operation = service.operation(message.model_name, message.model_version)
            request = decode_request(message)
            with server.tracer.span(context.invocation_metadata(), operation.name) as span:
                response = await service.infer(request, context.time_remaining())
                span.annotate(response.version, request)
            encoded = time.perf_counter()
            typed = message.inputs and not message.raw_input_contents
            reply = encode_response(response, raw=not typed)
            service.counters.observe("encode", operation.name, time.perf_counter() - encoded)
        status = 200
        return reply
    except VaeError as err:
        status = err.status
        raise
    except Exception:
        status = 500
        raise
    finally:
        service.record("grpc", message.model_name, status, started)


def decode_request(message: Any) -> InferRequest:
    """Read a ModelInferRequest, whose tensors are all raw or all typed.

    Raises:
        DataRefused: the sizes of its tensors do not match.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise DataRefused(f"{len(message.inputs)} inputs need as many raw contents, got {len(raw)}")
    inputs: dict[str, Array] = {}
    for place, tensor in enumerate(message.inputs):
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        if name in inputs:
            raise DataRefused(f"{name} is given twice")
        if raw:
            inputs[name] = from_bytes(name, datatype, shape, memoryview(raw[place]))
        else:
            field = _CONTENTS.get(datatype, "fp32_contents")
            values = [*getattr(tensor.contents, field)]
            inputs[name] = from_values(name, datatype, shape, values, booleans=False)
    return InferRequest(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        inputs=inputs,
        outputs=[output.name for output in message.outputs],
        parameters=_parameters(message.parameters),
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


def _parameters(fields: Mapping[str, Any]) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for name, value in fields.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise UsageRefused(f"the parameter {name} has no value")
        parameters[name] = getattr(value, choice)
    return parameters


CALLS: Mapping[str, tuple[Call, Any, bool]] = {
    "ServerLive": (server_live, pb.ServerLiveRequest, False),
    "ServerReady": (server_ready, pb.ServerReadyRequest, False),
    "ModelReady": (model_ready, pb.ModelReadyRequest, False),
    "ServerMetadata": (server_metadata, pb.ServerMetadataRequest, True),
    "ModelMetadata": (model_metadata, pb.ModelMetadataRequest, True),
    "ModelConfig": (model_config, pb.ModelConfigRequest, True),
    "ModelStatistics": (model_statistics, pb.ModelStatisticsRequest, True),
    "ModelInfer": (infer, pb.ModelInferRequest, True),
    "RepositoryIndex": (repository_index, pb.RepositoryIndexRequest, True),
    "RepositoryModelLoad": (repository_load, pb.RepositoryModelLoadRequest, True),
    "RepositoryModelUnload": (repository_unload, pb.RepositoryModelUnloadRequest, True),
}
"""The function of each call, its request message, and whether it needs the API key."""
HEALTH_CALLS: Mapping[str, tuple[Call, Any, bool]] = {
    "Check": (check_health, pb.HealthCheckRequest, False)
}
