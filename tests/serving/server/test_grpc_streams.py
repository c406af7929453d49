"""Streams of requests over gRPC, as Triton's clients open them."""

import asyncio
import contextlib
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton  # type: ignore[import-untyped]

from serving.engine import Engine
from serving.protocol import open_inference_pb2 as pb
from serving.server.grpc_calls import SERVICE
from serving.server.grpc_server import MAX_MESSAGE
from tests.serving.conftest import SEALED
from tests.serving.running import Running, serve
from tests.serving.server.arrays import same
from tests.serving.server.grpc_requests import Status, arrays_of, request_of
from tests.serving.server.secured import KEY


def open_stream(channel: Any) -> Any:
    return channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )


class Requests:
    """The requests of a stream: a test sends them one by one, and ends them."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Any] = queue.Queue()

    def __iter__(self) -> Iterator[Any]:
        yield from iter(self._waiting.get, None)

    def send(self, message: Any) -> None:
        self._waiting.put(message)


def test_a_triton_client_streams_requests_and_gets_each_answer(
    server: Running, engine: Engine, x: np.ndarray
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(5):
            tensor = triton.InferInput("x", [number + 1, 6, 5], "UINT8")
            tensor.set_data_from_numpy(x[: number + 1])
            client.async_stream_infer(
                "encode", [tensor], request_id=str(number), enable_empty_final_response=True
            )
        for number in range(5):
            result, error = answers.get(timeout=20)
            assert error is None
            assert result.get_response().id == str(number)
            expected = engine.encode(x[: number + 1])
            same({name: result.as_numpy(name) for name in expected}, expected)
        client.stop_stream()


def test_an_error_is_the_answer_of_its_request_and_the_stream_goes_on(
    server: Running, engine: Engine
) -> None:
    eps = np.ones((2, 3), np.float32)
    messages = [
        request_of("sample", {"eps": eps}, id="1"),
        request_of("sample", {}, parameters={"seed": -1}, id="2"),
        request_of("nope", {}, id="3"),
        request_of("sample", {"eps": eps}, id="4"),
    ]
    with grpc.insecure_channel(server.grpc) as channel:
        replies = list(open_stream(channel)(iter(messages), timeout=30))
    assert [reply.infer_response.id for reply in replies] == ["1", "2", "3", "4"]
    assert "seed must be a whole number" in replies[1].error_message
    assert "no model 'nope'" in replies[2].error_message
    for reply in (replies[0], replies[3]):
        assert reply.error_message == ""
        same(arrays_of(reply.infer_response), engine.run("sample", {"eps": eps}))


def test_a_long_name_in_an_error_does_not_end_the_stream(server: Running) -> None:
    """Clients take messages of up to 4 MiB."""
    long = request_of("sample", {})
    long.inputs.add(name="x", datatype="Q" * 5 * 2**20)
    with grpc.insecure_channel(server.grpc) as channel:
        messages = iter([long, request_of("sample", {})])
        replies = list(open_stream(channel)(messages, timeout=30))
    assert [len(reply.error_message) for reply in replies] == [MAX_MESSAGE, 0]


def test_a_stream_needs_the_api_key(locked: Running) -> None:
    message = request_of("sample", {})
    with grpc.insecure_channel(locked.grpc) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(open_stream(channel)(iter([message]), timeout=20))
        error: Any = caught.value
        assert error.code() is Status.UNAUTHENTICATED
        metadata = [("authorization", f"Bearer {KEY}")]
        (reply,) = open_stream(channel)(iter([message]), timeout=20, metadata=metadata)
        assert reply.infer_response.model_name == "sample"


@pytest.mark.slow
def test_a_stream_that_waits_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """The end would take as long as --drain says, longer than the test waits for it."""
    with (
        serve(tmp_path, SEALED, "--drain", "600") as running,
        grpc.insecure_channel(running.grpc) as channel,
    ):
        requests = Requests()
        replies = open_stream(channel)(iter(requests), timeout=60)
        requests.send(request_of("sample", {}))
        assert next(replies).error_message == ""
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            next(replies)
        requests.send(None)
        assert replies.code() is Status.UNAVAILABLE
        assert replies.details() == "the server is stopping: call again"
        assert running.process.wait(20) == 0


@pytest.mark.slow
def test_streams_leave_room_for_calls(tmp_path: Path) -> None:
    """A stream may stay open for as long as its client likes: streams may not use all calls."""
    with (
        serve(tmp_path, SEALED, "--max-connections", "4", "--drain", "0.2") as running,
        grpc.insecure_channel(running.grpc) as channel,
    ):
        open_ones = []
        for _ in range(2):
            requests = Requests()
            replies = open_stream(channel)(iter(requests), timeout=60)
            requests.send(request_of("sample", {}))
            next(replies)
            open_ones.append((requests, replies))
        with pytest.raises(grpc.RpcError) as caught:
            list(open_stream(channel)(iter([request_of("sample", {})]), timeout=20))
        error: Any = caught.value
        assert error.code() is Status.RESOURCE_EXHAUSTED
        live: Any = channel.unary_unary(f"/{SERVICE}/ServerLive")
        assert live(b"", timeout=20) == pb.ServerLiveResponse(live=True).SerializeToString()
        for requests, replies in open_ones:
            replies.cancel()
            requests.send(None)
        asyncio.run(until_free(running))


async def until_free(running: Running) -> None:
    """A cancelled stream gives its place back."""
    async with asyncio.timeout(20), grpc.aio.insecure_channel(running.grpc) as channel:
        while True:
            replies = open_stream(channel)(iter([request_of("sample", {})]))
            with contextlib.suppress(grpc.aio.AioRpcError):
                assert len([reply async for reply in replies]) == 1
            if await replies.code() is Status.OK:
                return
            assert await replies.code() is Status.RESOURCE_EXHAUSTED
            await asyncio.sleep(0.05)
