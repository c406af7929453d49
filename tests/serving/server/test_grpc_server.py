"""gRPC against a running server, and the messages against Triton's and the .proto file."""

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2  # type: ignore[import-untyped]

from serving.engine import Engine
from serving.protocol import open_inference_pb2 as pb
from serving.protocol.messages import DATATYPES
from serving.server.auth import Access
from serving.server.batching import Batcher
from serving.server.grpc_server import _CALLS, DATA_TYPES, SERVICE, GrpcServer
from serving.server.service import LoadedVersion, Service
from serving.server.shared_counters import SharedCounters
from serving.server.supervisor import free_port
from serving.server.tracing import Tracer
from tests.serving.running import Running

Arrays = Mapping[str, np.ndarray]
Call = Callable[..., Any]
PROTO = Path(pb.__file__).with_name("open_inference.proto")
CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}
Status = grpc.StatusCode


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        yield channel


def method(channel: Any, name: str, service: str = SERVICE) -> Any:
    """A call by name; its messages are those of that name."""
    reply = getattr(pb, f"{name}Response") if service == SERVICE else pb.HealthCheckResponse
    return channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=reply.FromString,
    )


@pytest.fixture(scope="module")
def call(channel: grpc.Channel) -> Call:
    def call(name: str, message: Any, **options: Any) -> Any:
        return method(channel, name)(message, timeout=30, **options)

    return call


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


def same(got: Arrays, expected: Arrays) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


def refused(call: Call, name: str, message: Any, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(name, message)
    error: Any = caught.value
    assert error.code() is code, error.details()
    return str(error.details())


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("operation", ["encode", "decode", "reconstruct", "sample", "score"])
def test_every_operation_gives_the_engine_s_bytes(
    call: Call, server: Running, engine: Engine, x: np.ndarray, operation: str, raw: bool
) -> None:
    rng = np.random.default_rng(4)
    z = rng.standard_normal((4, 3)).astype(np.float32)
    eps = rng.standard_normal((5, 2, 3)).astype(np.float32)
    arrays = {
        "encode": {"x": x[:5]},
        "decode": {"z": z},
        "reconstruct": {"x": x[:5]},
        "sample": {"eps": z},
        "score": {"x": x[:5], "eps": eps},
    }[operation]
    reply = call("ModelInfer", request_of(operation, arrays, raw=raw, id="7"))
    assert (reply.model_name, reply.model_version, reply.id) == (operation, server.version, "7")
    same(arrays_of(reply, raw=raw), engine.run(operation, arrays))


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_a_seed_gives_the_engine_s_bytes(
    call: Call, engine: Engine, x: np.ndarray, raw: bool
) -> None:
    parameters = {"seed": 7, "num_samples": 5}
    reply = call("ModelInfer", request_of("sample", {}, parameters=parameters))
    same(arrays_of(reply), {"x_loc": engine.sample(5, 7)})
    message = request_of("score", {"x": x[:9]}, raw=raw, parameters=parameters)
    same(arrays_of(call("ModelInfer", message), raw=raw), engine.score(x[:9], 5, 7))


def test_neighbours_in_a_batch_change_nothing(call: Call, engine: Engine, x: np.ndarray) -> None:
    cases = [(start, rows, seed % 5) for seed, (start, rows) in enumerate([(3, 1), (9, 40)] * 30)]

    def ask(case: tuple[int, int, int]) -> None:
        start, rows, seed = case
        part = x[start : start + rows]
        message = request_of("score", {"x": part}, parameters={"seed": seed, "num_samples": 2})
        same(arrays_of(call("ModelInfer", message)), engine.score(part, 2, seed))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, cases))


def test_requested_outputs_come_alone_and_in_order(
    call: Call, engine: Engine, x: np.ndarray
) -> None:
    names = ["iw_elbo", "elbo"]
    reply = call("ModelInfer", request_of("score", {"x": x[:3]}, outputs=names))
    expected = engine.score(x[:3], 1, 0)
    same(arrays_of(reply), {name: expected[name] for name in names})


def test_whole_floats_stand_for_bytes(call: Call, engine: Engine, x: np.ndarray) -> None:
    reply = call("ModelInfer", request_of("encode", {"x": x[:3].astype(np.float32)}, raw=False))
    same(arrays_of(reply, raw=False), engine.encode(x[:3]))


def broken(**changes: Any) -> Any:
    """A request of `encode` with one part of its tensor changed."""
    message = request_of("encode", {"x": np.zeros((2, 6, 5), np.uint8)})
    for name, value in changes.items():
        if name == "raw":
            del message.raw_input_contents[:]
            message.raw_input_contents.extend(value)
        elif name == "shape":
            del message.inputs[0].shape[:]
            message.inputs[0].shape.extend(value)
        elif name == "typed":
            del message.raw_input_contents[:]
            message.inputs[0].contents.uint_contents.extend(value)
        else:
            setattr(message.inputs[0], name, value)
    return message


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (broken(raw=[b"0" * 60, b""]), "1 inputs need as many raw contents, got 2"),
        (broken(raw=[b"0" * 59]), "needs 60 bytes, got 59"),
        (broken(raw=[b"0" * 61]), "needs 60 bytes, got 61"),
        (broken(raw=[]), "data of x has shape"),
        (broken(typed=[1] * 59), "data of x has shape"),
        (broken(typed=[300] * 60), "x must be whole numbers from 0 to 255, got 300"),
        (broken(datatype="INT64"), "datatype of x must be FP32 or UINT8, got 'INT64'"),
        (broken(datatype=""), "datatype of x must be FP32 or UINT8, got ''"),
        (broken(shape=[-2, -6, 5]), "must be at most 8 sizes from 0, got"),
        (broken(shape=[60]), "x must be (batch, 6, 5), got (60,)"),
        (broken(shape=[0, 2**62, 2**62], raw=[b""]), "x"),
        (broken(name="y"), "encode takes x, got y"),
        (request_of("encode", {}), "encode takes x, got none"),
        (request_of("score", {}), "score takes x, and eps or a seed for it, got none"),
        (request_of("sample", {}, parameters={"seed": -1}), "seed must be a whole number"),
        (request_of("sample", {}, parameters={"seed": 1.0}), "seed must be a whole number"),
        (request_of("sample", {}, parameters={"sed": 1}), "got 'sed'"),
        (
            pb.ModelInferRequest(model_name="sample", parameters={"seed": pb.InferParameter()}),
            "the parameter seed has no value",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_an_invalid_argument(call: Call, message: Any, text: str) -> None:
    assert text in refused(call, "ModelInfer", message, Status.INVALID_ARGUMENT)


def test_an_input_twice_is_refused(call: Call) -> None:
    message = broken(raw=[b"0" * 60] * 2)
    message.inputs.append(message.inputs[0])
    text = refused(call, "ModelInfer", message, Status.INVALID_ARGUMENT)
    assert text == "x is given twice"


def test_a_long_name_in_an_error_does_not_break_the_call(call: Call) -> None:
    """Trailers of more than 16 KiB are what gRPC clients refuse."""
    message = broken(datatype="Q" * 20_000)
    text = refused(call, "ModelInfer", message, Status.INVALID_ARGUMENT)
    assert text.startswith("datatype of x must be FP32 or UINT8")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ModelInfer", pb.ModelInferRequest(model_name="nope")),
        ("ModelInfer", pb.ModelInferRequest(model_name="sample", model_version="41")),
        ("ModelMetadata", pb.ModelMetadataRequest(name="nope")),
        ("ModelConfig", pb.ModelConfigRequest(name="sample", version="41")),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="nope")),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nope")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="nope")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_there_is_not_found(call: Call, name: str, message: Any) -> None:
    assert re.search("no model 'nope'|not '41'", refused(call, name, message, Status.NOT_FOUND))


def test_load_takes_no_parameters(call: Call) -> None:
    message = pb.RepositoryModelLoadRequest(model_name="sample")
    message.parameters["config"].string_param = "{}"
    refused(call, "RepositoryModelLoad", message, Status.INVALID_ARGUMENT)


def test_unloaded_is_unavailable_until_it_is_loaded_again(call: Call, engine: Engine) -> None:
    def ready() -> tuple[bool, list[str]]:
        index = call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).models
        model = call("ModelReady", pb.ModelReadyRequest(name="decode"))
        return model.ready, [entry.name for entry in index]

    z = np.ones((1, 3), np.float32)
    names = ["encode", "decode", "reconstruct", "sample", "score"]
    assert ready() == (True, names)
    try:
        call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="decode"))
        refused(call, "ModelInfer", request_of("decode", {"z": z}), Status.UNAVAILABLE)
        assert ready() == (False, [name for name in names if name != "decode"])
    finally:
        call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="decode"))
    assert ready() == (True, names)
    same(
        arrays_of(call("ModelInfer", request_of("decode", {"z": z}))),
        {"x_loc": engine.decode(z)},
    )


def test_health_and_metadata(call: Call, channel: grpc.Channel, server: Running) -> None:
    assert call("ServerLive", pb.ServerLiveRequest()).live
    assert call("ServerReady", pb.ServerReadyRequest()).ready
    assert not call("ModelReady", pb.ModelReadyRequest(name="nope")).ready
    assert not call("ModelReady", pb.ModelReadyRequest(name="sample", version="41")).ready
    assert call("ServerMetadata", pb.ServerMetadataRequest()).name == "vae-pipeline"
    health = method(channel, "Check", "grpc.health.v1.Health")
    for service in ("", SERVICE):
        assert health(pb.HealthCheckRequest(service=service), timeout=5).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        health(pb.HealthCheckRequest(service="other"), timeout=5)
    error: Any = caught.value
    assert error.code() is Status.NOT_FOUND


@pytest.mark.parametrize("operation", ["encode", "decode", "reconstruct", "sample", "score"])
def test_metadata_config_and_statistics_are_those_of_rest(
    call: Call, server: Running, operation: str
) -> None:
    rest = httpx.get(f"{server.rest}/v2/models/{operation}").json()
    found = call("ModelMetadata", pb.ModelMetadataRequest(name=operation))
    assert (found.name, list(found.versions)) == (operation, [server.version])
    for side in ("inputs", "outputs"):
        assert rest[side] == [
            {"name": t.name, "datatype": t.datatype, "shape": list(t.shape)}
            for t in getattr(found, side)
        ]
    rest = httpx.get(f"{server.rest}/v2/models/{operation}/config").json()
    config = call("ModelConfig", pb.ModelConfigRequest(name=operation)).config
    assert (config.name, config.max_batch_size) == (operation, rest["max_batch_size"])
    assert config.HasField("dynamic_batching")
    for side in ("input", "output"):
        assert rest[side] == [
            {
                "name": t.name,
                "data_type": model_config_pb2.DataType.Name(t.data_type),
                "dims": list(t.dims),
            }
            for t in getattr(config, side)
        ]
    rest = httpx.get(f"{server.rest}/v2/models/{operation}/stats").json()["model_stats"][0]
    message = pb.ModelStatisticsRequest(name=operation)
    (entry,) = call("ModelStatistics", message).model_stats
    assert (entry.inference_count, entry.execution_count) == (
        rest["inference_count"],
        rest["execution_count"],
    )
    success = entry.inference_stats.success
    assert {"count": success.count, "ns": success.ns} == rest["inference_stats"]["success"]


def test_a_message_over_the_limit_is_refused(call: Call, engine: Engine) -> None:
    rows = 16 * 2**20 // 30 + 1
    message = request_of("encode", {"x": np.zeros((rows, 6, 5), np.uint8)})
    text = refused(call, "ModelInfer", message, Status.RESOURCE_EXHAUSTED)
    assert "larger than max" in text
    assert call("ServerLive", pb.ServerLiveRequest()).live


def test_bytes_that_are_no_message_do_not_end_the_server(channel: grpc.Channel) -> None:
    infer: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    with pytest.raises(grpc.RpcError):
        infer(b"\xff" * 100, timeout=5)
    assert method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=5).live


def test_a_deadline_in_the_request_passes_in_the_queue(call: Call) -> None:
    message = request_of("sample", {}, parameters={"timeout": 1})
    text = refused(call, "ModelInfer", message, Status.DEADLINE_EXCEEDED)
    assert text.startswith("the deadline passed in the queue")


@dataclass(frozen=True, slots=True)
class Held:
    """A server in this process whose runs begin, and then wait for `go`."""

    infer: Any
    counters: SharedCounters
    batcher: Batcher
    began: threading.Event
    go: threading.Event
    computed: list[int]
    """Rows of each run that ended."""


@contextlib.asynccontextmanager
async def held(engine: Engine, folder: Path) -> AsyncIterator[Held]:
    began, go, computed = threading.Event(), threading.Event(), list[int]()

    def compute(name: str, inputs: Arrays) -> Arrays:
        began.set()
        assert go.wait(30)
        computed.append(len(next(iter(inputs.values()))))
        return engine.compute(name, inputs)

    counters = SharedCounters(folder / "counters", 2, 1)
    service = Service(counters, max_requests=4, max_rows=100, timeout_s=30)
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(compute, {}, executor, 100, counters)
        service.serve(LoadedVersion(engine, batcher, "bundle", "1"))
        server = GrpcServer(service, Access(), Tracer(), max_bytes=2**20, max_calls=64)
        address = f"127.0.0.1:{free_port('127.0.0.1', 0, '--grpc-port')}"
        await server.start(address, None)
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                infer = method(channel, "ModelInfer")
                yield Held(infer, counters, batcher, began, go, computed)
        finally:
            go.set()
            await server.stop(1)


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not reached():
            await asyncio.sleep(0.001)


def decode_rows(rows: int) -> Any:
    return request_of("decode", {"z": np.zeros((rows, 3), np.float32)})


@pytest.mark.parametrize("leave", ["cancel", "deadline"])
def test_a_client_that_leaves_is_counted_and_not_computed(
    engine: Engine, tmp_path: Path, leave: str
) -> None:
    async def run() -> None:
        async with held(engine, tmp_path) as there:
            first = there.infer(decode_rows(1), timeout=30)
            await until(there.began.is_set)
            left = there.infer(decode_rows(7), timeout=1 if leave == "deadline" else 30)
            last = there.infer(decode_rows(2), timeout=30)
            await until(lambda: there.batcher.queued == 9)
            if leave == "cancel":
                left.cancel()
            code = await left.code()
            assert code is (Status.CANCELLED if leave == "cancel" else Status.DEADLINE_EXCEEDED)
            await until(lambda: there.counters.total("requests", "decode", "grpc", 499) == 1)
            there.go.set()
            assert [(await answer).outputs[0].shape[0] for answer in (first, last)] == [1, 2]
            assert there.computed == [1, 2]
            assert there.batcher.queued == 0

    asyncio.run(run())


def test_a_full_queue_refuses_at_once(engine: Engine, tmp_path: Path) -> None:
    async def run() -> None:
        async with held(engine, tmp_path) as there:
            first = there.infer(decode_rows(1), timeout=30)
            await until(there.began.is_set)
            second = there.infer(decode_rows(60), timeout=30)
            await until(lambda: there.batcher.queued == 60)
            refused = there.infer(decode_rows(41), timeout=30)
            assert await refused.code() is Status.RESOURCE_EXHAUSTED
            assert "60 rows wait, at most 100 may" in await refused.details()
            third = there.infer(decode_rows(40), timeout=30)
            await until(lambda: there.batcher.queued == 100)
            there.go.set()
            sizes = [(await answer).outputs[0].shape[0] for answer in (first, second, third)]
            assert sizes == [1, 60, 40]
            assert there.counters.total("requests", "decode", "grpc", 429) == 1

    asyncio.run(run())


def test_requests_under_way_are_bounded(engine: Engine, tmp_path: Path) -> None:
    async def run() -> None:
        async with held(engine, tmp_path) as there:
            calls = [there.infer(decode_rows(1), timeout=30)]
            await until(there.began.is_set)
            calls += [there.infer(decode_rows(1), timeout=30) for _ in range(3)]
            await until(lambda: there.batcher.queued == 3)
            refused = there.infer(decode_rows(1), timeout=30)
            assert await refused.code() is Status.RESOURCE_EXHAUSTED
            assert "4 requests are in progress" in await refused.details()
            calls.pop().cancel()
            await until(lambda: there.counters.total("requests", "decode", "grpc", 499) == 1)
            calls.append(there.infer(decode_rows(2), timeout=30))
            await until(lambda: there.batcher.queued == 5)  # the one that left is still in line
            there.go.set()
            assert [(await call).outputs[0].shape[0] for call in calls] == [1, 1, 1, 2]

    asyncio.run(run())


def test_every_call_of_the_table_is_one_of_triton_s() -> None:
    triton = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert triton.full_name == SERVICE
    for name, (_, request, _) in _CALLS.items():
        assert triton.methods_by_name[name].input_type.name == request.DESCRIPTOR.name


def test_numbers_of_datatypes_are_triton_s() -> None:
    assert DATA_TYPES == {
        name: model_config_pb2.DataType.Value(name) for name in ("TYPE_UINT8", "TYPE_FP32")
    }


Field = tuple[int, str, bool]
"""Number, type as the .proto writes it, and whether it is repeated."""
KINDS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in (*"bool int32 int64 uint32 uint64 float double string bytes".split(), "enum")
}


def fields_of(message: Descriptor) -> dict[str, Field]:
    """Fields of a compiled message, with maps written as maps."""

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
    """All messages of a file, nested ones as Outer.Inner."""
    for message in place:
        if not message.GetOptions().map_entry:
            yield prefix + message.name, message
            yield from messages_of(message.nested_types, f"{prefix}{message.name}.")


def compiled(module: Any) -> dict[str, dict[str, Field]]:
    messages = messages_of(module.DESCRIPTOR.message_types_by_name.values())
    return {name: fields_of(message) for name, message in messages}


def written() -> dict[str, dict[str, Field]]:
    """Messages of the .proto file, read without a compiler."""
    text = re.sub(r"//.*", "", PROTO.read_text())
    tokens = re.findall(r"map<\w+, \w+>|\w+|[{};=]", text)
    found: dict[str, dict[str, Field]] = {}
    open_blocks: list[str] = []
    statement: list[str] = []
    for token in tokens:
        if token == "{":
            kind, name = statement
            open_blocks.append(name if kind == "message" else "")
            if kind == "message":
                found[".".join(filter(None, open_blocks))] = {}
            statement = []
        elif token == "}":
            open_blocks.pop()
        elif token == ";":
            if open_blocks:
                *label, kind, name, _, number = statement
                message = ".".join(filter(None, open_blocks))
                found[message][name] = (int(number), kind, label == ["repeated"])
            statement = []
        else:
            statement.append(token)
    return found


def test_the_compiled_messages_are_those_of_the_proto_file() -> None:
    assert len(written()) == 39
    assert compiled(pb) == written()


def test_every_field_is_numbered_and_typed_as_triton_s() -> None:
    triton = compiled(service_pb2) | compiled(model_config_pb2)
    ours = compiled(pb)
    assert ours.keys() - triton.keys() == {"HealthCheckRequest", "HealthCheckResponse"}
    for name in ours.keys() & triton.keys():
        for field, (number, kind, repeated) in ours[name].items():
            theirs = triton[name][field]
            if kind == "int32" and theirs[1] == "enum":
                kind = "enum"  # the same bytes
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
