"""Frames come out whole and the same, wherever their bytes were cut on the way."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http2 import frames
from serving.http2.frame_reader import FrameReader
from serving.http2.frames import Code, ConnectionFault
from serving.http2.limits import LIST_SIZE

SETTINGS = frames.settings_frame({})


def read(*pieces: bytes) -> list[tuple[int, int, int, bytes]]:
    found: list[tuple[int, int, int, bytes]] = []

    def take(*frame: Any) -> bool:
        found.append(frame)
        return True

    reader = FrameReader(take)
    for piece in pieces:
        reader.feed(piece)
    return found


def fault(*pieces: bytes) -> Code:
    with pytest.raises(ConnectionFault) as caught:
        read(*pieces)
    return caught.value.code


SENT = [
    frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"block"),
    frames.frame(frames.DATA, 0, 1, bytes(300)),
    frames.frame(frames.HEADERS, frames.PADDED | frames.WITH_PRIORITY, 3, b"\3-----ab\0\0\0"),
    frames.frame(frames.CONTINUATION, 0, 3, b""),
    frames.frame(frames.CONTINUATION, frames.END_HEADERS, 3, b"cd"),
    frames.frame(77, 255, 2**31 - 1, b"unknown"),
    frames.number_frame(frames.WINDOW_UPDATE, 0, 9),
]
SEEN = [
    (frames.SETTINGS, 0, 0, b""),
    (frames.HEADERS, frames.END_HEADERS, 1, b"block"),
    (frames.DATA, 0, 1, bytes(300)),
    (frames.CONTINUATION, 0, 3, b""),
    (frames.CONTINUATION, frames.END_HEADERS, 3, b""),
    (frames.HEADERS, frames.PADDED | frames.WITH_PRIORITY, 3, b"abcd"),
    (77, 255, 2**31 - 1, b"unknown"),
    (frames.WINDOW_UPDATE, 0, 0, b"\0\0\0\t"),
]


@given(st.sets(st.integers(0, 500)))
def test_frames_are_the_same_wherever_they_were_cut(cuts: set[int]) -> None:
    whole = frames.PREFACE + SETTINGS + b"".join(SENT)
    places = [0, *sorted(cuts), len(whole)]
    assert read(*(whole[a:b] for a, b in pairwise(places))) == SEEN


def test_every_byte_may_come_alone() -> None:
    whole = frames.PREFACE + SETTINGS + b"".join(SENT)
    assert read(*(bytes([byte]) for byte in whole)) == SEEN


def test_the_highest_bit_of_a_stream_s_number_is_ignored() -> None:
    ping = frames.frame(frames.PING, payload=bytes(8))
    marked = ping[:5] + b"\x80" + ping[6:]
    assert read(frames.PREFACE, SETTINGS, marked)[1] == (frames.PING, 0, 0, bytes(8))


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"PRI * HTTP/2.1"])
def test_another_protocol_is_refused_at_its_first_bytes(start: bytes) -> None:
    assert fault(start) is Code.PROTOCOL_ERROR


def test_a_client_begins_with_its_settings() -> None:
    assert fault(frames.PREFACE, SENT[0]) is Code.PROTOCOL_ERROR
    acknowledged = frames.frame(frames.SETTINGS, frames.ACK)
    assert fault(frames.PREFACE, acknowledged) is Code.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (frames.frame_header(frames.DATA, 0, 1, 2**14 + 1), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.SETTINGS, payload=bytes(5)), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.SETTINGS, frames.ACK, payload=bytes(6)), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.SETTINGS, stream=1, payload=bytes(6)), Code.PROTOCOL_ERROR),
        (frames.frame(frames.PING, payload=bytes(7)), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.PING, stream=1, payload=bytes(8)), Code.PROTOCOL_ERROR),
        (frames.frame(frames.GOAWAY, payload=bytes(7)), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.WINDOW_UPDATE, payload=bytes(3)), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.RST_STREAM, stream=1, payload=bytes(5)), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.RST_STREAM, payload=bytes(4)), Code.PROTOCOL_ERROR),
        (frames.frame(frames.PRIORITY, stream=1, payload=bytes(4)), Code.FRAME_SIZE_ERROR),
        (frames.frame(frames.HEADERS, 4, 0), Code.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, 12, 1, b"\5abc"), Code.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, 12, 1), Code.PROTOCOL_ERROR),
        (frames.frame(frames.CONTINUATION, 4, 1, b"a"), Code.PROTOCOL_ERROR),
        (frames.frame(frames.HEADERS, 0, 1) + SENT[1], Code.PROTOCOL_ERROR),
        (
            frames.frame(frames.HEADERS, 0, 1) + frames.frame(frames.CONTINUATION, 4, 3),
            Code.PROTOCOL_ERROR,
        ),
    ],
)
def test_a_frame_that_may_not_be_there_ends_the_connection(frame: bytes, code: Code) -> None:
    assert fault(frames.PREFACE, SETTINGS, frame) is code


def test_a_header_block_that_goes_on_and_on_is_refused() -> None:
    """CVE-2024-27316: its size must be bounded while it arrives, not at its end."""
    start = frames.frame(frames.HEADERS, 0, 1, bytes(2**14))
    more = frames.frame(frames.CONTINUATION, 0, 1, bytes(2**14))
    assert 2 * 2**14 <= 2 * LIST_SIZE
    assert read(frames.PREFACE, SETTINGS, start, more)
    assert fault(frames.PREFACE, SETTINGS, start, more, more) is Code.ENHANCE_YOUR_CALM
