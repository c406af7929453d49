"""Server reflection: a client without a .proto file finds the calls and messages, and infers."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2 as wire
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]

from serving.engine import Engine
from serving.server.grpc_calls import METHODS, SERVICE
from tests.serving.running import Running
from tests.serving.server.arrays import same
from tests.serving.server.grpc_requests import arrays_of

BOTH = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def pool(channel: grpc.Channel) -> DescriptorPool:
    """All that a client learns by asking."""
    return DescriptorPool(ProtoReflectionDescriptorDatabase(channel))


def ask(channel: grpc.Channel, version: str, *requests: Any) -> list[Any]:
    call: Any = channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=wire.ServerReflectionRequest.SerializeToString,
        response_deserializer=wire.ServerReflectionResponse.FromString,
    )
    return list(call(iter(requests), timeout=30))


@pytest.mark.parametrize("version", BOTH)
def test_every_service_is_listed_and_can_be_described(channel: grpc.Channel, version: str) -> None:
    (listed,) = ask(channel, version, wire.ServerReflectionRequest(list_services=""))
    names = [service.name for service in listed.list_services_response.service]
    assert sorted(names) == sorted(METHODS)
    assert {*BOTH, SERVICE, "grpc.health.v1.Health"} == {*names}
    questions = [wire.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    for answer in ask(channel, version, *questions):
        assert len(answer.file_descriptor_response.file_descriptor_proto) == 1


@pytest.mark.parametrize("version", BOTH)
def test_an_unknown_symbol_is_an_answer_and_not_the_end(
    channel: grpc.Channel, version: str
) -> None:
    answers = ask(
        channel,
        version,
        wire.ServerReflectionRequest(file_containing_symbol="no.Such"),
        wire.ServerReflectionRequest(file_by_filename="no.proto"),
        wire.ServerReflectionRequest(file_containing_symbol=f"{SERVICE}.ModelInfer"),
    )
    codes = [answer.error_response.error_code for answer in answers]
    assert codes == [grpc.StatusCode.NOT_FOUND.value[0]] * 2 + [0]


def test_the_calls_are_described_as_triton_s(pool: DescriptorPool) -> None:
    ours = pool.FindServiceByName(SERVICE)
    triton = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert [call.name for call in ours.methods] == [*METHODS[SERVICE]]
    for call in ours.methods:
        theirs = triton.methods_by_name[call.name]
        assert call.input_type.full_name == theirs.input_type.full_name
        assert call.output_type.full_name == theirs.output_type.full_name
        assert call.client_streaming == theirs.client_streaming
        assert call.server_streaming == theirs.server_streaming
        for message in (call.input_type, call.output_type):
            numbers = {field.name: field.number for field in message.fields}
            known = triton.file.message_types_by_name[message.name].fields_by_name
            assert numbers == {name: known[name].number for name in numbers}


def test_a_client_infers_with_what_it_was_told(
    channel: grpc.Channel, pool: DescriptorPool, engine: Engine, x: np.ndarray
) -> None:
    infer = pool.FindServiceByName(SERVICE).methods_by_name["ModelInfer"]
    request: Any = GetMessageClass(infer.input_type)(model_name="score")
    request.inputs.add(name="x", datatype="UINT8", shape=[3, 6, 5])
    request.raw_input_contents.append(x[:3].tobytes())
    request.parameters["seed"].int64_param = 7
    call: Any = channel.unary_unary(
        f"/{infer.containing_service.full_name}/{infer.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(infer.output_type).FromString,
    )
    same(arrays_of(call(request, timeout=30)), engine.score(x[:3], 1, 7))


def test_names_of_values_are_told(pool: DescriptorPool) -> None:
    status = pool.FindEnumTypeByName("grpc.health.v1.HealthCheckResponse.ServingStatus")
    assert [(value.name, value.number) for value in status.values] == [
        ("UNKNOWN", 0),
        ("SERVING", 1),
        ("NOT_SERVING", 2),
        ("SERVICE_UNKNOWN", 3),
    ]
    datatype = pool.FindEnumTypeByName("inference.DataType")
    assert datatype.values_by_name["TYPE_FP32"].number == 11


def test_reflection_needs_no_key_like_the_openapi_document(locked: Running) -> None:
    with grpc.insecure_channel(locked.grpc) as channel:
        assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()
