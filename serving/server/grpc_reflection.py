"""Server reflection of gRPC: describe the calls under the names that they have on the wire.

The messages of this process are compiled under a package of their own (see the .proto file), and
its services are a table, so that what clients read is made from both.
"""

from collections.abc import AsyncIterator, Container, Mapping
from inspect import isasyncgenfunction
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2

REFLECTION = "grpc.reflection.v1.ServerReflection"
REFLECTION_ALPHA = "grpc.reflection.v1alpha.ServerReflection"
"""The first version; the second has the same messages and another name."""
ReflectionRequest = reflection_pb2.ServerReflectionRequest
ReflectionReply = reflection_pb2.ServerReflectionResponse


def describe_services(services: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the servicer of reflection for a table of `Method`s by service and name."""
    from grpc_reflection.v1alpha.reflection import aio  # which imports grpc: few clients need it

    pool: Any = DescriptorPool()
    for name, methods in services.items():
        pool.Add(_file(name, methods))
    return aio.ReflectionServicer(services, pool=pool)


async def whole_services(
    messages: AsyncIterator[Any], services: Container[str]
) -> AsyncIterator[Any]:
    """Ask for a service where a client asks for one of its calls, which a pool does not find."""
    async for message in messages:
        service = message.file_containing_symbol.rpartition(".")[0]
        if service in services:
            message.file_containing_symbol = service
        yield message


def _file(service: str, methods: Mapping[str, Any]) -> FileDescriptorProto:
    """Describe one service and its messages, as if its package had a .proto file of its own."""
    package = service.rpartition(".")[0]
    file = FileDescriptorProto(name=f"{package.replace('.', '/')}.proto", package=package)
    file.syntax = "proto3"
    described = file.service.add(name=service.rpartition(".")[2])
    used: set[str] = set()
    source = FileDescriptorProto()
    next(iter(methods.values())).request.DESCRIPTOR.file.CopyToProto(source)
    for name, method in methods.items():
        request, reply = method.request.DESCRIPTOR, method.reply.DESCRIPTOR
        _collect(request, used)
        _collect(reply, used)
        described.method.add(
            name=name,
            input_type=f".{package}.{request.name}",
            output_type=f".{package}.{reply.name}",
            client_streaming=method.many_requests,
            server_streaming=isasyncgenfunction(method.call),
        )
    file.message_type.extend(m for m in source.message_type if f"{source.package}.{m.name}" in used)
    file.enum_type.extend(e for e in source.enum_type if f"{source.package}.{e.name}" in used)
    for message in file.message_type:
        _move(message, f".{source.package}.", f".{package}.")
    return file


def _collect(message: Descriptor, used: set[str]) -> None:
    """Add the names of a message and of all that its fields hold."""
    if message.full_name in used:
        return
    used.add(message.full_name)
    for field in message.fields:
        if field.enum_type is not None:
            used.add(field.enum_type.full_name)
        if field.message_type is not None:
            _collect(field.message_type, used)


def _move(message: DescriptorProto, package: str, to: str) -> None:
    """Let a message's fields refer to another package."""
    for field in filter(lambda field: field.type_name, message.field):
        field.type_name = field.type_name.replace(package, to)
    for nested in message.nested_type:
        _move(nested, package, to)
