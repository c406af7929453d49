"""Calls as no client of gRPC makes them, and statuses as the protocol wants them."""

import gzip
import socket
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine import Engine
from serving.http2 import frames
from serving.protocol import open_inference_pb2 as pb
from serving.server.grpc_calls import SERVICE
from serving.server.grpc_wire import STATUS_NUMBERS, prefix
from tests.serving.running import Running
from tests.serving.server.arrays import same
from tests.serving.server.grpc_requests import arrays_of, request_of
from tests.serving.server.http2_client import Http2Client
from tests.serving.server.raw_sockets import memory, read_all

MIB = 2**20
SAMPLE = request_of("sample", {}, parameters={"seed": 3}).SerializeToString()
FRAMED = prefix(len(SAMPLE)) + SAMPLE


@pytest.fixture
def client(server: Running) -> Iterator[Http2Client]:
    with Http2Client(server) as client:
        yield client


def check(client: Http2Client, stream: int, engine: Engine) -> None:
    fields, body = client.answer(stream)
    assert fields[":status"] == "200"
    assert fields["content-type"] == "application/grpc"
    assert fields["grpc-status"] == "0"
    assert body[:5] == prefix(len(body) - 5)
    same(arrays_of(pb.ModelInferResponse.FromString(body[5:])), {"x_loc": engine.sample(1, 3)})


def refused(client: Http2Client, stream: int) -> tuple[str, str]:
    """Return the name of a status and its message."""
    fields, body = client.answer(stream)
    assert (fields[":status"], body) == ("200", b"")
    names = {str(number): name for name, number in STATUS_NUMBERS.items()}
    return names[fields["grpc-status"]], fields["grpc-message"]


def test_a_call_of_another_client_is_answered(client: Http2Client, engine: Engine) -> None:
    for _ in range(3):
        check(client, client.open(FRAMED), engine)


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(1, len(FRAMED) + 60), max_size=6))
def test_a_message_may_come_in_any_pieces(server: Running, engine: Engine, cuts: set[int]) -> None:
    with Http2Client(server) as client:
        stream = client.open(end=False)
        places = [0, *sorted(cut for cut in cuts if cut < len(FRAMED)), len(FRAMED)]
        for start, stop in pairwise(places):
            client.h2.send_data(stream, FRAMED[start:stop])
        client.h2.end_stream(stream)
        sent = client.h2.data_to_send()
        start = 0
        for cut in [*sorted(cuts), len(sent)]:
            client.socket.sendall(sent[start:cut])
            start = max(start, cut)
        check(client, stream, engine)


def test_compressed_and_not_compressed_messages_in_one_encoding(
    client: Http2Client, engine: Engine
) -> None:
    packed = gzip.compress(SAMPLE)
    for body in (b"\1" + prefix(len(packed))[1:] + packed, FRAMED):
        check(client, client.open(body, [("grpc-encoding", "gzip")]), engine)


@pytest.mark.parametrize(
    ("body", "more", "status", "text"),
    [
        (b"", (), "UNIMPLEMENTED", "takes one message"),
        (FRAMED[:-1], (), "UNIMPLEMENTED", "takes one message"),
        (FRAMED[:3], (), "UNIMPLEMENTED", "takes one message"),
        (FRAMED * 2, (), "UNIMPLEMENTED", "takes one message"),
        (b"\1" + FRAMED[1:], (), "UNIMPLEMENTED", "gzip or deflate"),
        (b"\1" + FRAMED[1:], [("grpc-encoding", "br")], "UNIMPLEMENTED", "gzip or deflate"),
        (b"\1" + FRAMED[1:], [("grpc-encoding", "gzip")], "INVALID_ARGUMENT", "not valid gzip"),
        (prefix(2) + b"\xff\xff", (), "INVALID_ARGUMENT", "not a message of this call"),
        (FRAMED, [("grpc-timeout", "0n")], "DEADLINE_EXCEEDED", "the deadline passed"),
    ],
)
def test_what_is_no_call_has_a_status(  # type: ignore[no-untyped-def]
    client: Http2Client, engine: Engine, body: bytes, more, status: str, text: str
) -> None:
    found, message = refused(client, client.open(body, more))
    assert found == status
    assert text in message
    check(client, client.open(FRAMED), engine)


def test_a_method_that_is_not_there_is_unimplemented(client: Http2Client) -> None:
    for path in (f"/{SERVICE}/Nope", "/nope/ModelInfer", "/", "*"):
        status, message = refused(client, client.open(FRAMED, path=path))
        assert (status, message) == (
            "UNIMPLEMENTED",
            f"no method '{path}': reflection describes those here",
        )


def test_what_is_not_grpc_has_a_status_of_http(client: Http2Client) -> None:
    assert client.answer(client.open(content_type="text/html")) == ({":status": "415"}, b"")
    assert client.answer(client.open(method="GET")) == ({":status": "405"}, b"")


def test_a_message_is_refused_before_it_has_arrived(client: Http2Client) -> None:
    stream = client.open(prefix(2**31) + bytes(100), end=False)
    status, message = refused(client, stream)
    assert status == "RESOURCE_EXHAUSTED"
    assert "larger than max" in message


def test_messages_of_a_stream_may_share_a_frame_and_be_cut(client: Http2Client) -> None:
    path = f"/{SERVICE}/ModelStreamInfer"
    stream = client.open(FRAMED * 3 + FRAMED[:9], path=path, end=False)
    client.h2.send_data(stream, FRAMED[9:], end_stream=True)
    client.flush()
    fields, body = client.answer(stream)
    assert fields["grpc-status"] == "0"
    sizes = []
    while body:
        size = int.from_bytes(body[1:5])
        sizes.append(pb.ModelStreamInferResponse.FromString(body[5 : 5 + size]).error_message)
        body = body[5 + size :]
    assert sizes == [""] * 4


def test_many_tiny_messages_are_read_in_time(client: Http2Client) -> None:
    """Bytes that wait are cut off one message at a time, without a copy of the rest."""
    stream = client.open(path=f"/{SERVICE}/ModelStreamInfer", end=False)
    count = 10_000
    for start in range(0, count, 1000):
        client.h2.send_data(stream, prefix(0) * 1000, end_stream=start + 1000 == count)
    client.flush()
    fields, body = client.answer(stream)
    assert fields["grpc-status"] == "0"
    assert body.count(b"no model ''") == count


def test_another_protocol_is_told_and_closed(server: Running) -> None:
    host, _, port = server.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"speaks gRPC over HTTP/2" in read_all(connection)


@pytest.mark.slow
def test_clients_that_never_read_cost_little_and_others_are_served(
    strict: Running, engine: Engine
) -> None:
    """Each asks for 20 answers of 120 kB and more, and reads none."""
    count, rows = 300, 1000
    body = request_of("sample", {}, parameters={"num_samples": rows}).SerializeToString()
    before = memory(strict, "VmRSS")
    clients = [Http2Client(strict) for _ in range(count)]
    try:
        for client in clients:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(20):
                client.open(prefix(len(body)) + body)
        with Http2Client(strict) as other:
            end = time.monotonic() + 20
            while True:
                fields, _ = other.answer(other.open(FRAMED))
                if fields["grpc-status"] == "0":
                    break
                assert fields["grpc-status"] == str(STATUS_NUMBERS["RESOURCE_EXHAUSTED"])
                assert time.monotonic() < end
        assert memory(strict, "VmHWM") - before < 200 * MIB
    finally:
        for client in clients:
            client.socket.close()


def test_frames_of_a_size_that_no_client_sends_end_the_connection(server: Running) -> None:
    host, _, port = server.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(frames.PREFACE + frames.settings_frame({}) + b"\xff" * 100)
        assert b"the frame is too large" in read_all(connection)
