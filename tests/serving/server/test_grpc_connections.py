"""Connections of gRPC clients: pings that keep them, compression, parameters of their own."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton  # type: ignore[import-untyped]

from serving.engine import Engine
from serving.protocol import open_inference_pb2 as pb
from tests.serving.running import Running
from tests.serving.server.arrays import same
from tests.serving.server.grpc_requests import Status, arrays_of, method, request_of
from tests.serving.server.raw_sockets import memory

MIB = 2**20
PINGS: Mapping[str, int] = {
    "grpc.keepalive_time_ms": 200,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def tensor(x: np.ndarray) -> Any:
    made = triton.InferInput("x", x.shape, "UINT8")
    made.set_data_from_numpy(x)
    return made


def test_a_connection_that_pings_without_calls_is_kept(server: Running) -> None:
    """By default gRPC ends a connection at the third ping within ten minutes."""
    left = threading.Event()
    with grpc.insecure_channel(server.grpc, [*PINGS.items()]) as channel:
        grpc.channel_ready_future(channel).result(20)

        def changed(state: grpc.ChannelConnectivity) -> None:
            if state is not grpc.ChannelConnectivity.READY:
                left.set()

        channel.subscribe(changed)
        assert not left.wait(5)
        channel.unsubscribe(changed)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_of_a_triton_client_is_answered(
    client: Any, engine: Engine, x: np.ndarray, algorithm: str
) -> None:
    result = client.infer("encode", [tensor(x[:40])], compression_algorithm=algorithm)
    expected = engine.encode(x[:40])
    same({name: result.as_numpy(name) for name in expected}, expected)


@pytest.mark.parametrize("algorithm", ["Gzip", "Deflate"])
def test_a_message_is_limited_after_it_was_decompressed(
    server: Running, engine: Engine, algorithm: str
) -> None:
    """256 MiB of zeros arrive as a quarter of a megabyte."""
    options = [("grpc.max_send_message_length", -1)]
    compression = getattr(grpc.Compression, algorithm)
    before = memory(server, "VmHWM")
    with grpc.insecure_channel(server.grpc, options, compression) as channel:
        infer = method(channel, "ModelInfer")
        bomb = request_of("encode", {"x": np.zeros((256 * MIB // 30, 6, 5), np.uint8)})
        with pytest.raises(grpc.RpcError) as caught:
            infer(bomb, timeout=60)
        error: Any = caught.value
        assert error.code() is Status.RESOURCE_EXHAUSTED
        assert "larger than max" in error.details()
        message = request_of("sample", {}, parameters={"seed": 3})
        same(arrays_of(infer(message, timeout=20)), {"x_loc": engine.sample(1, 3)})
    assert memory(server, "VmHWM") - before < 100 * MIB


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 1},
        {"timeout": 20_000_000},
        {"client_timeout": 20.0},
        {"sequence_id": 3, "sequence_start": True, "sequence_end": True},
        {"sequence_id": "three"},
        {"headers": {"x-request-id": "7", "user-agent": "test"}},
        {"parameters": {"content_type": "np", "anything": 1.5}},
    ],
    ids=lambda options: ",".join(options),
)
def test_what_clients_send_beside_the_tensors_changes_nothing(
    client: Any, engine: Engine, x: np.ndarray, options: dict[str, Any]
) -> None:
    result = client.infer("encode", [tensor(x[:2])], **options)
    expected = engine.encode(x[:2])
    same({name: result.as_numpy(name) for name in expected}, expected)


def test_the_parameter_of_perf_analyzer_changes_nothing(server: Running, engine: Engine) -> None:
    parameters = {"seed": 3, "triton_enable_empty_final_response": True}
    with grpc.insecure_channel(server.grpc) as channel:
        message = request_of("sample", {}, parameters=parameters)
        reply = method(channel, "ModelInfer")(message, timeout=20)
    same(arrays_of(reply), {"x_loc": engine.sample(1, 3)})


def test_a_parameter_without_a_value_is_absent(server: Running, engine: Engine) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        message = pb.ModelInferRequest(model_name="sample")
        message.parameters["seed"].SetInParent()
        message.parameters["other"].SetInParent()
        reply = method(channel, "ModelInfer")(message, timeout=20)
        same(arrays_of(reply), {"x_loc": engine.sample(1, 0)})
        load = pb.RepositoryModelLoadRequest(model_name="sample")
        load.parameters["config"].SetInParent()
        method(channel, "RepositoryModelLoad")(load, timeout=20)
        index = method(channel, "RepositoryIndex")(pb.RepositoryIndexRequest(), timeout=20)
        assert len(index.models) == 6
