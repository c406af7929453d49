"""Header blocks: kept ones say what decoding them again would say; malformed requests are told."""

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from serving.http2.frames import Code, ConnectionFault, StreamFault
from serving.http2.headers import Fields, HeadReader, write_block

REQUEST: Fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/B")]
names = st.sampled_from([b"a", b"b", b"grpc-timeout", b"authorization"])
values = st.sampled_from([b"1", b"2", b"x" * 40, b"y" * 3000])
fields = st.lists(st.tuples(names, values), max_size=5)


@given(st.lists(st.tuples(fields, st.booleans(), st.sampled_from([None, 0, 200, 4096]))))
def test_a_block_that_is_known_says_what_the_table_makes_of_it(
    requests: list[tuple[Fields, bool, int | None]],
) -> None:
    """A block of indices means something else once the table has changed."""
    encoder, reader = Encoder(), HeadReader(tuple)
    for more, again, size in requests:
        if size is not None:
            encoder.header_table_size = size
        for _ in range(1 + again):
            sent = REQUEST + more
            block = encoder.encode(sent, huffman=again)
            assert reader.read(block) == tuple(sent)


def test_the_same_bytes_mean_something_else_once_the_table_has_changed() -> None:
    """0xbe is the field that was added last, 0x40 adds one, and 0x20 empties the table."""
    reader, block = HeadReader(tuple), write_block(REQUEST) + b"\xbe"
    for value in (b"1", b"2"):
        reader.decode(b"\x40\x01a\x01" + value)
        for _ in range(2):
            assert reader.read(block)[-1] == (b"a", value)
    reader.decode(b"\x20")
    with pytest.raises(ConnectionFault):
        reader.read(block)


def test_a_known_block_is_decoded_and_checked_once() -> None:
    calls = []

    def read(fields: Fields) -> str:
        calls.append(fields)
        return "head"

    reader = HeadReader(read)
    encoder = Encoder()
    for _ in range(5):
        assert reader.read(encoder.encode(REQUEST)) == "head"
    assert len(calls) == 2  # the first adds to the table


def test_what_is_known_is_bounded() -> None:
    reader = HeadReader(tuple)
    for number in range(1000):
        reader.read(write_block([*REQUEST, (b"a", b"%d" % number)]))
    assert len(reader._known) <= 32


def test_a_malformed_block_is_not_kept() -> None:
    reader, block = HeadReader(tuple), write_block(REQUEST[:2])
    for _ in range(2):
        with pytest.raises(StreamFault):
            reader.read(block)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=300))))
def test_a_written_block_says_what_was_written(written: Fields) -> None:
    table = Decoder(2**20)
    written += [(b":status", b"200"), (b"content-type", b"application/grpc")]
    assert [(*field,) for field in table.decode(write_block(written), raw=True)] == written
    assert not table.header_table.dynamic_entries


@pytest.mark.parametrize(
    "fields",
    [
        REQUEST[1:],
        [*REQUEST[:2], (b":path", b"")],
        [*REQUEST, (b":path", b"/again")],
        [*REQUEST, (b":status", b"200")],
        [(b"a", b"1"), *REQUEST],
        [*REQUEST, (b"Upper", b"1")],
        [*REQUEST, (b"", b"1")],
        [*REQUEST, (b"a b", b"1")],
        [*REQUEST, (b"a", b"line\nbreak")],
        [*REQUEST, (b"a", b" space")],
        [*REQUEST, (b"connection", b"close")],
        [*REQUEST, (b"transfer-encoding", b"chunked")],
        [*REQUEST, (b"te", b"gzip")],
    ],
    ids=lambda fields: str(fields[-1]),
)
def test_a_malformed_request_is_told(fields: Fields) -> None:
    with pytest.raises(StreamFault):
        HeadReader(tuple).read(write_block(fields))


@pytest.mark.parametrize(
    "block",
    [
        b"\xff\xff\xff\xff\xff\xff",
        b"\xbe",
        b"\x80",
        b"\x40",
        b"\x00\x05ab",
        b"\x40\x01a\xff",
        b"\x3f\xe1\xff\x03",
        b"\x20\x3f\xe1\x1f\x20" + write_block(REQUEST),
        b"\x00\x81\xff\x01a",
        write_block([(b"a", b"b" * 2**14)]),
        write_block([(b"a", b"b")] * 600),
    ],
    ids=lambda block: block[:8].hex(),
)
def test_a_block_that_cannot_be_decoded_ends_the_connection(block: bytes) -> None:
    """The table can no longer be followed."""
    with pytest.raises(ConnectionFault) as caught:
        HeadReader(tuple).read(block)
    assert caught.value.code is Code.COMPRESSION_ERROR


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_fault(block: bytes) -> None:
    try:
        HeadReader(tuple).read(block)
    except (ConnectionFault, StreamFault):
        return
