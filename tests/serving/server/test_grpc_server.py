"""gRPC against a running server, with the engine's own bytes as the reference."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2  # type: ignore[import-untyped]

from serving.engine import Engine
from serving.protocol import open_inference_pb2 as pb
from serving.server.grpc_calls import SERVICE
from tests.serving.running import Running
from tests.serving.server.arrays import same
from tests.serving.server.grpc_requests import (
    Call,
    Status,
    arrays_of,
    method,
    refused,
    request_of,
)


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        yield channel


@pytest.fixture(scope="module")
def call(channel: grpc.Channel) -> Call:
    def call(name: str, message: Any, **options: Any) -> Any:
        return method(channel, name)(message, timeout=30, **options)

    return call


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
    """Return a request of `encode` with one part of its tensor changed."""
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


def many(field: str) -> Any:
    """Return a request of `encode` with nine inputs or outputs more."""
    message = broken()
    for number in range(9):
        getattr(message, field).add(name=str(number))
    return message


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (many("inputs"), "a request may have 8 inputs, got 10"),
        (many("outputs"), "a request may have 8 outputs, got 9"),
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
    """gRPC clients refuse trailers of more than 16 KiB."""
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
    names = ["encode", "decode", "reconstruct", "sample", "score", "draw"]
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
    for kind, name in ((channel.unary_unary, "Infer"), (channel.stream_stream, "StreamInfer")):
        call: Any = kind(f"/{SERVICE}/Model{name}")
        streams = name == "StreamInfer"
        with pytest.raises(grpc.RpcError) as caught:
            tuple(call(iter([b"\xff"]), timeout=5)) if streams else call(b"\xff", timeout=5)
        error: Any = caught.value
        assert error.code() is Status.INVALID_ARGUMENT
        assert error.details() == "the request is not a message of this call's type"
    assert method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=5).live


def test_a_deadline_in_the_request_passes_in_the_queue(call: Call) -> None:
    message = request_of("sample", {}, parameters={"timeout": 1})
    text = refused(call, "ModelInfer", message, Status.DEADLINE_EXCEEDED)
    assert text.startswith("the deadline passed in the queue")
