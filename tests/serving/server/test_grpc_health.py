"""The health of the server and of its operations over gRPC, asked once and watched."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.protocol import open_inference_pb2 as pb
from serving.server.grpc_calls import HEALTH, SERVICE
from tests.serving.conftest import SEALED
from tests.serving.running import Running, serve
from tests.serving.server.grpc_requests import Status, method

SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3
"""Numbers of the protocol of gRPC health checking; 3 means an unknown service."""


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel


def watch(channel: grpc.Channel, service: str = "") -> Any:
    """Return the statuses of a service, of which the next one comes when it changes."""
    call: Any = channel.unary_stream(
        f"/{HEALTH}/Watch",
        request_serializer=pb.HealthCheckRequest.SerializeToString,
        response_deserializer=pb.HealthCheckResponse.FromString,
    )
    return call(pb.HealthCheckRequest(service=service), timeout=60)


@pytest.mark.parametrize("service", ["", SERVICE, "encode", "score"])
def test_what_is_there_serves(channel: grpc.Channel, service: str) -> None:
    message = pb.HealthCheckRequest(service=service)
    assert method(channel, "Check", HEALTH)(message, timeout=20).status == SERVING
    watched = watch(channel, service)
    assert next(watched).status == SERVING
    watched.cancel()


def test_an_unknown_service_is_not_found_and_can_be_watched(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "Check", HEALTH)(pb.HealthCheckRequest(service="other"), timeout=20)
    error: Any = caught.value
    assert error.code() is Status.NOT_FOUND
    assert f"no service 'other': there are {SERVICE}, encode" in error.details()
    watched = watch(channel, "other")
    assert next(watched).status == UNKNOWN
    watched.cancel()


def test_a_watch_sees_an_operation_unloaded_and_loaded(channel: grpc.Channel) -> None:
    decode, whole = watch(channel, "decode"), watch(channel)
    assert (next(decode).status, next(whole).status) == (SERVING, SERVING)
    try:
        unload = pb.RepositoryModelUnloadRequest(model_name="decode")
        method(channel, "RepositoryModelUnload")(unload, timeout=20)
        assert next(decode).status == NOT_SERVING
        check = pb.HealthCheckRequest(service="decode")
        assert method(channel, "Check", HEALTH)(check, timeout=20).status == NOT_SERVING
    finally:
        load = pb.RepositoryModelLoadRequest(model_name="decode")
        method(channel, "RepositoryModelLoad")(load, timeout=20)
    assert next(decode).status == SERVING
    decode.cancel()
    whole.cancel()


def test_health_needs_no_key(locked: Running) -> None:
    with grpc.insecure_channel(locked.grpc) as channel:
        watched = watch(channel)
        assert next(watched).status == SERVING
        watched.cancel()


@pytest.mark.slow
def test_a_watch_sees_the_drain_and_does_not_hold_it_up(tmp_path: Path) -> None:
    """The end would take as long as --drain says, longer than the test waits for it."""
    with (
        serve(tmp_path, SEALED, "--workers", "2", "--drain", "600") as running,
        grpc.insecure_channel(running.grpc) as channel,
    ):
        watched = watch(channel)
        assert next(watched).status == SERVING
        running.process.send_signal(signal.SIGTERM)
        assert next(watched).status == NOT_SERVING
        with pytest.raises(grpc.RpcError):
            next(watched)
        assert watched.code() is Status.UNAVAILABLE
        assert running.process.wait(20) == 0
