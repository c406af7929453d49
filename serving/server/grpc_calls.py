"""The calls of gRPC, one line each, and the function that answers each.

Source: Open Inference Protocol gRPC API; Triton's extensions; the protocols of gRPC health
checking and of gRPC server reflection.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from serving.errors import NotFound, NotReady, VaeError
from serving.protocol import open_inference_pb2 as pb
from serving.protocol.grpc_body import (
    decode_request,
    nest_response,
    read_parameters,
    write_response,
)
from serving.protocol.messages import refuse_to_load
from serving.server.grpc_call import Call
from serving.server.grpc_reflection import (
    REFLECTION,
    REFLECTION_ALPHA,
    ReflectionReply,
    ReflectionRequest,
    whole_services,
)
from serving.server.grpc_server import MAX_MESSAGE, GrpcServer, Method, Methods, Parts, Reply
from serving.server.service import Service
from serving.server.shared_counters import OPERATIONS
from serving.server.version_follower import WATCH_INTERVAL_S

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
Health = pb.HealthCheckResponse


async def server_live(server: GrpcServer, message: Any, call: Call) -> Any:
    """Answer; any answer shows that the process is alive."""
    return pb.ServerLiveResponse(live=True)


async def server_ready(server: GrpcServer, message: Any, call: Call) -> Any:
    """Report whether the server takes requests."""
    return pb.ServerReadyResponse(ready=server.service.ready)


async def model_ready(server: GrpcServer, message: Any, call: Call) -> Any:
    """Report whether the operation is loaded."""
    service = server.service
    try:
        service.operation(message.name, message.version)
    except (NotFound, NotReady):
        return pb.ModelReadyResponse(ready=False)
    return pb.ModelReadyResponse(ready=service.ready and service.is_loaded(message.name))


async def server_metadata(server: GrpcServer, message: Any, call: Call) -> Any:
    """Report the name, version and extensions of the server."""
    return pb.ServerMetadataResponse(**server.service.server_metadata())


async def model_metadata(server: GrpcServer, message: Any, call: Call) -> Any:
    """Describe the tensors: names, datatypes and shapes."""
    content = server.service.model_metadata(message.name, message.version)
    del content["parameters"]
    return pb.ModelMetadataResponse(**content)


async def model_config(server: GrpcServer, message: Any, call: Call) -> Any:
    """Describe the operation as a Triton model configuration."""
    content = server.service.model_config(message.name, message.version)
    return pb.ModelConfigResponse(config=pb.ModelConfig(**content))


async def model_statistics(server: GrpcServer, message: Any, call: Call) -> Any:
    """Report counts and times since the start."""
    content = server.service.statistics(message.name, message.version)
    for entry in content["model_stats"]:
        del entry["batch_stats"]
    return pb.ModelStatisticsResponse(**content)


async def repository_index(server: GrpcServer, message: Any, call: Call) -> Any:
    """List the operations, and whether each is loaded."""
    return pb.RepositoryIndexResponse(models=server.service.index(only_ready=message.ready))


async def repository_load(server: GrpcServer, message: Any, call: Call) -> Any:
    """Load an operation, on all workers, and poll the registry now."""
    refuse_to_load(read_parameters(message.parameters))
    server.service.set_loaded(message.model_name, True)
    return pb.RepositoryModelLoadResponse()


async def repository_unload(server: GrpcServer, message: Any, call: Call) -> Any:
    """Unload an operation, on all workers."""
    server.service.set_loaded(message.model_name, False)
    return pb.RepositoryModelUnloadResponse()


async def infer(server: GrpcServer, message: Any, call: Call) -> Parts:
    """Run one operation."""
    service = server.service
    started = time.perf_counter()
    status = 499
    try:
        with service.admission:
            served, operation = service.operation(message.model_name, message.model_version)
            request = decode_request(message, operation, served.columns)
            with server.tracer.span(call.invocation_metadata(), operation.name) as span:
                response = await service.infer(request, call.time_remaining())
                span.annotate(response.version, request)
            encoded = time.perf_counter()
            typed = message.inputs and not message.raw_input_contents
            reply = write_response(response, raw=not typed)
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


async def stream_infer(
    server: GrpcServer, messages: AsyncIterator[Any], call: Call
) -> AsyncIterator[Any]:
    """Run the operations of a stream of requests, one after the other.

    An error is the answer of its request, with the request's id; the stream goes on.
    """
    async for message in messages:
        try:
            reply: Reply = nest_response(await infer(server, message, call))
        except VaeError as err:
            empty = pb.ModelInferResponse(model_name=message.model_name, id=message.id)
            reply = pb.ModelStreamInferResponse(
                error_message=str(err)[:MAX_MESSAGE], infer_response=empty
            )
        yield reply


async def check_health(server: GrpcServer, message: Any, call: Call) -> Any:
    """Report the health of the server, or of the service or operation that the request names."""
    status = _health(server.service, message.service)
    if status == Health.SERVICE_UNKNOWN:
        known = ", ".join((SERVICE, *OPERATIONS))
        raise NotFound(f"no service {message.service!r}: there are {known}")
    return Health(status=status)


async def watch_health(
    server: GrpcServer, messages: AsyncIterator[Any], call: Call
) -> AsyncIterator[Any]:
    """Report the health of a service or an operation now, and each time that it changes."""
    async for message in messages:
        told = None
        while not server.stopping:
            status = _health(server.service, message.service)
            if status != told:
                yield Health(status=status)
            told = status
            await asyncio.sleep(WATCH_INTERVAL_S)
        raise NotReady("the server is stopping: call again")


def _health(service: Service, name: str) -> Health.ServingStatus:
    if name in OPERATIONS:
        ready = service.ready and service.is_loaded(name)
    elif name in ("", SERVICE):
        ready = service.ready
    else:
        return Health.SERVICE_UNKNOWN
    return Health.SERVING if ready else Health.NOT_SERVING


async def reflect(
    server: GrpcServer, messages: AsyncIterator[Any], call: Call
) -> AsyncIterator[Any]:
    """Describe the services and messages to a client that has no .proto file."""
    questions = whole_services(messages, server.methods)
    async for reply in server.descriptions.ServerReflectionInfo(questions, call):
        yield reply


_REFLECTION: Methods = {
    "ServerReflectionInfo": Method(
        reflect, ReflectionRequest, ReflectionReply, open=True, many_requests=True
    )
}
METHODS: Mapping[str, Methods] = {
    SERVICE: {
        "ServerLive": Method(server_live, pb.ServerLiveRequest, pb.ServerLiveResponse, open=True),
        "ServerReady": Method(
            server_ready, pb.ServerReadyRequest, pb.ServerReadyResponse, open=True
        ),
        "ModelReady": Method(model_ready, pb.ModelReadyRequest, pb.ModelReadyResponse, open=True),
        "ServerMetadata": Method(
            server_metadata, pb.ServerMetadataRequest, pb.ServerMetadataResponse
        ),
        "ModelMetadata": Method(model_metadata, pb.ModelMetadataRequest, pb.ModelMetadataResponse),
        "ModelConfig": Method(model_config, pb.ModelConfigRequest, pb.ModelConfigResponse),
        "ModelStatistics": Method(
            model_statistics, pb.ModelStatisticsRequest, pb.ModelStatisticsResponse
        ),
        "ModelInfer": Method(infer, pb.ModelInferRequest, pb.ModelInferResponse, counted=True),
        "ModelStreamInfer": Method(
            stream_infer, pb.ModelInferRequest, pb.ModelStreamInferResponse, many_requests=True
        ),
        "RepositoryIndex": Method(
            repository_index, pb.RepositoryIndexRequest, pb.RepositoryIndexResponse
        ),
        "RepositoryModelLoad": Method(
            repository_load, pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse
        ),
        "RepositoryModelUnload": Method(
            repository_unload, pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse
        ),
    },
    HEALTH: {
        "Check": Method(check_health, pb.HealthCheckRequest, Health, open=True),
        "Watch": Method(watch_health, pb.HealthCheckRequest, Health, open=True),
    },
    REFLECTION: _REFLECTION,
    REFLECTION_ALPHA: _REFLECTION,
}
"""The calls of each service."""
