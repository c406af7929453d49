"""The messages of gRPC are those of the .proto file and, field by field, Triton's."""

import re
from collections.abc import Iterator
from inspect import isasyncgenfunction
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2  # type: ignore[import-untyped]

from serving.protocol import open_inference_pb2 as pb
from serving.server.grpc_calls import METHODS, SERVICE

PROTO = Path(pb.__file__).with_name("open_inference.proto")


def test_every_call_of_the_table_is_one_of_triton_s() -> None:
    triton = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert triton.full_name == SERVICE
    for name, method in METHODS[SERVICE].items():
        theirs = triton.methods_by_name[name]
        assert theirs.input_type.name == method.request.DESCRIPTOR.name
        assert theirs.output_type.name == method.reply.DESCRIPTOR.name
        assert theirs.client_streaming == method.many_requests
        assert theirs.server_streaming == isasyncgenfunction(method.call)


def test_numbers_of_datatypes_are_triton_s() -> None:
    assert pb.DataType.items() == [
        (name, model_config_pb2.DataType.Value(name)) for name in pb.DataType.keys()
    ]


Field = tuple[int, str, bool]
"""Number, type as in the .proto file, and whether the field is repeated."""

KINDS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in (*"bool int32 int64 uint32 uint64 float double string bytes".split(), "enum")
}


def fields_of(message: Descriptor) -> dict[str, Field]:
    """Return the fields of a compiled message, with maps written as maps."""

    def kind(field: FieldDescriptor) -> str:
        entry = field.message_type
        if entry is None:
            return KINDS[field.type]
        if entry.GetOptions().map_entry:
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            return f"map<{kind(key)}, {kind(value)}>"
        return str(entry.name)

    return {
        field.name: (
            field.number,
            kind(field),
            field.is_repeated and not kind(field).startswith("map<"),
        )
        for field in message.fields
    }


def messages_of(place: Any, prefix: str = "") -> Iterator[tuple[str, Descriptor]]:
    """Yield all messages of a file, nested ones as Outer.Inner."""
    for message in place:
        if not message.GetOptions().map_entry:
            yield prefix + message.name, message
            yield from messages_of(message.nested_types, f"{prefix}{message.name}.")


def compiled(module: Any) -> dict[str, dict[str, Field]]:
    messages = messages_of(module.DESCRIPTOR.message_types_by_name.values())
    return {name: fields_of(message) for name, message in messages}


def written() -> dict[str, dict[str, Field]]:
    """Read the messages of the .proto file without a compiler."""
    text = re.sub(r"//.*", "", PROTO.read_text())
    tokens = re.findall(r"map<\w+, \w+>|\w+|[{};=]", text)
    enums = re.findall(r"enum (\w+)", text)
    found: dict[str, dict[str, Field]] = {}
    open_blocks: list[str] = []
    statement: list[str] = []
    for token in tokens:
        if token == "{":
            kind, name = statement
            open_blocks.append({"message": name, "enum": "enum"}.get(kind, ""))
            if kind == "message":
                found[".".join(open_blocks)] = {}
            statement = []
        elif token == "}":
            open_blocks.pop()
        elif token == ";":
            if open_blocks and open_blocks[-1] != "enum":
                *label, kind, name, _, number = statement
                message = ".".join(filter(None, open_blocks))
                kind = "enum" if kind in enums else kind
                found[message][name] = (int(number), kind, label == ["repeated"])
            statement = []
        else:
            statement.append(token)
    return found


def test_the_compiled_messages_are_those_of_the_proto_file() -> None:
    assert len(written()) == 40
    assert compiled(pb) == written()


def test_every_field_is_numbered_and_typed_as_triton_s() -> None:
    triton = compiled(service_pb2) | compiled(model_config_pb2)
    ours = compiled(pb)
    assert ours.keys() - triton.keys() == {"HealthCheckRequest", "HealthCheckResponse"}
    for name in ours.keys() & triton.keys():
        for field, (number, kind, repeated) in ours[name].items():
            theirs = triton[name][field]
            assert (number, kind, repeated) == theirs, f"{name}.{field}"


def test_a_request_of_triton_s_reads_the_same_here() -> None:
    theirs = service_pb2.ModelInferRequest(model_name="score", id="1", model_version="2")
    theirs.parameters["seed"].int64_param = 7
    tensor = theirs.inputs.add(name="x", datatype="UINT8", shape=[1, 6, 5])
    tensor.contents.uint_contents.extend(range(30))
    theirs.outputs.add(name="kl")
    ours = pb.ModelInferRequest.FromString(theirs.SerializeToString())
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )
    assert str(ours) == str(theirs)
