"""What the parser makes of bytes: against h11, and cut at any place; and what it refuses."""

from typing import NamedTuple

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http1.exchange import Head
from serving.http1.limits import HEAD_BYTES
from serving.http1.request_parser import RequestParser

HOST = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST
POST = b"POST / HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n"


class Got(NamedTuple):
    """A request as it was read."""

    method: str
    target: bytes
    version: str
    headers: dict[str, str]
    keeps: bool
    body: bytes = b""
    complete: bool = False


class Sink:
    """Keeps what the parser finds."""

    def __init__(self) -> None:
        self.found: list[Got] = []
        self.heads = 0
        self.open = False
        self.refusals: list[tuple[int, str]] = []

    def begun(self) -> None:
        self.heads += 1

    def opened(self, head: Head) -> None:
        assert not self.refusals
        self.open = True
        self.found.append(
            Got(head.method, head.target, head.version, dict(head.headers), head.keeps)
        )

    def received(self, part: bytes) -> None:
        self.found[-1] = self.found[-1]._replace(body=self.found[-1].body + part)

    def completed(self) -> None:
        if self.open:  # or it was an offer to upgrade, which is read once more
            self.found[-1] = self.found[-1]._replace(complete=True)
        self.open = False

    def refused(self, status: int, reason: str) -> None:
        self.open = False
        self.refusals.append((status, reason))


def parse(*pieces: bytes) -> Sink:
    sink = Sink()
    parser = RequestParser(sink)
    for piece in pieces:
        parser.feed(piece)
    return sink


class Sent(NamedTuple):
    """A request to write."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    cuts: tuple[int, ...] | None
    """Where the body is cut into chunks; None if its length is declared."""
    upgrades: bool

    def write(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/{self.version}", "Host: test"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.upgrades:
            lines += ["Upgrade: h2c", "Connection: Upgrade"]
        if self.cuts is None:
            end = self.body
            lines += [f"Content-Length: {len(end)}"] if end else []
        else:
            chunks = [piece for piece in cut(self.body, self.cuts) if piece]
            end = b"".join(b"%x;a=b\r\n%b\r\n" % (len(each), each) for each in chunks)
            end += b"0\r\nTrailer: x\r\n\r\n"
            lines += ["Transfer-Encoding: chunked"]
        return "\r\n".join((*lines, "", "")).encode("latin-1") + end


def cut(data: bytes, places: tuple[int, ...]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places})
    return [data[i:j] for i, j in zip([0, *ends], [*ends, len(data)], strict=True)]


NAMES = st.from_regex(r"[xX]-[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,8}", fullmatch=True)
VALUES = st.from_regex(r"[!-~\xa0-\xff]([ \t!-~\xa0-\xff]{0,8}[!-~\xa0-\xff])?", fullmatch=True)
TARGETS = st.from_regex(
    r"(http://[a-z]{1,4})?/[!$-;=-Z_a-z]{0,9}(\?[!$-;=-Z_a-z]{0,9})?", fullmatch=True
)
PLACES = st.lists(st.integers(0, 2**16), max_size=8).map(tuple)


@st.composite
def requests(draw: st.DrawFn, last: bool) -> Sent:
    version = draw(st.sampled_from(("1.1", "1.0"))) if last else "1.1"
    headers = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    spaces = st.sampled_from(("", " ", "\t "))
    headers = [(name, f"{draw(spaces)}{value}{draw(spaces)}") for name, value in headers]
    if last and draw(st.booleans()):
        headers.append(("Connection", draw(st.sampled_from(("close", "Close, x", "keep-alive")))))
    return Sent(
        draw(st.sampled_from(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"))),
        draw(TARGETS),
        version,
        tuple(headers),
        draw(st.binary(max_size=60)),
        draw(PLACES) if version == "1.1" and draw(st.booleans()) else None,
        draw(st.booleans()),
    )  # fmt: skip


SERIES = st.tuples(st.lists(requests(last=False), max_size=3), requests(last=True)).map(
    lambda found: [*found[0], found[1]]
)


def read_with_h11(content: bytes, count: int) -> list[Got]:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(content)
    found: list[Got] = []
    for place in range(count):
        if place:
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
        head = connection.next_event()
        assert isinstance(head, h11.Request)
        headers: dict[str, str] = {}
        for name, value in head.headers:
            key, text = name.decode(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        body = b""
        while isinstance(event := connection.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        version = head.http_version.decode()
        # h11 keeps no connection of HTTP/1.0, though it may, nor says what it does at an upgrade
        options = [each.strip() for each in headers.get("connection", "").lower().split(",")]
        keeps = "keep-alive" in options if version == "1.0" else "close" not in options
        found.append(
            Got(head.method.decode(), head.target, version, headers, keeps, body, complete=True)
        )
    return found


@given(SERIES)
def test_requests_are_read_as_h11_reads_them(series: list[Sent]) -> None:
    content = b"".join(sent.write() for sent in series)
    expected = read_with_h11(content, len(series))
    for place, sent in enumerate(series):
        if sent.upgrades:  # the offer is not taken, and not shown
            del expected[place].headers["upgrade"]
    sink = parse(content)
    assert sink.refusals == []
    assert sink.found == expected
    assert [got.body for got in sink.found] == [sent.body for sent in series]


@given(SERIES, PLACES)
def test_pieces_are_read_as_the_whole(series: list[Sent], places: tuple[int, ...]) -> None:
    content = b"".join(sent.write() for sent in series)
    assert parse(*cut(content, places)).found == parse(content).found


@given(SERIES, st.integers(0, 400), st.binary(min_size=1, max_size=3), PLACES)
def test_damage_is_read_alike_in_pieces(
    series: list[Sent], place: int, damage: bytes, places: tuple[int, ...]
) -> None:
    """Nor does it raise; and nothing is opened after a refusal."""
    content = b"".join(sent.write() for sent in series)
    content = content[:place] + damage + content[place + len(damage) :]
    whole, pieces = parse(content), parse(*cut(content, places))
    assert pieces.found == whole.found
    assert len(whole.refusals) <= 1
    assert pieces.refusals == whole.refusals


@pytest.mark.parametrize(
    "content",
    [
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
        POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n",
        POST + b"Content-Length: 2, 2\r\n\r\n",
        POST + b"Content-Length: 1\r\n 2\r\n\r\n",
        POST + b"Content-Length: 18446744073709551617\r\n\r\n",
        POST + b"Content-Length:\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, identity\r\nTransfer-Encoding: chunked, x\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
        POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n",
        POST + b"Transfer-Encoding: chun\r\n ked\r\n\r\n",
        POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n",
        GET + b"x: a\r\n b\r\n\r\n",
        GET + b"x : a\r\n\r\n",
        GET + b"x\r\n\r\n",
        GET + b": a\r\n\r\n",
        GET + b"x y: a\r\n\r\n",
        GET + b"x: a\nb: c\r\n\r\n",
        GET + b"x: a\rb: c\r\n\r\n",
        GET + b"x: a\0\r\n\r\n",
        GET + b"\n",
        GET.replace(b"1.1\r\n", b"1.1\n") + b"\r\n",
        GET.replace(b"1.1\r\n", b"1.1\r\n ") + b"\r\n",
        GET.replace(b" / ", b" /a b ") + b"\r\n",
        GET.replace(b" / ", b" /\x01 ") + b"\r\n",
        GET.replace(b" / ", b" a ") + b"\r\n",
        GET.replace(b"GET", b"get") + b"\r\n",
        GET.replace(b"1.1", b"1.2") + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        GET + b"Host: b\r\n\r\n",
        GET + b"Host:\r\n\r\n",
        GET.replace(b"1.1", b"1.0") + b"Host: b\r\n\r\n",
    ],
    ids=repr,
)  # fmt: skip
def test_a_head_that_could_be_read_in_two_ways_is_refused(content: bytes) -> None:
    sink = parse(content + b"0\r\n\r\n" + GET + b"\r\n")
    assert sink.found == []
    assert [status for status, _ in sink.refusals] == [400]


@pytest.mark.parametrize(
    "chunks",
    [b"0x2", b"+2", b"-2", b" 2", b"2 ", b"", b"2\n{}", b"2;a\nb", b'2;a="\r\n', b"1" + b"0" * 16],
    ids=repr,
)
def test_a_chunk_of_unclear_size_is_refused(chunks: bytes) -> None:
    sink = parse(CHUNKED + chunks + b"\r\n{}\r\n0\r\n\r\n" + GET + b"\r\n")
    assert [(got.body, got.complete) for got in sink.found] == [(b"", False)]
    assert [status for status, _ in sink.refusals] == [400]


@pytest.mark.parametrize(
    "end",
    [b"2\r\n{}\n0\r\n\r\n", b"2\r\n{}X\r\n0\r\n\r\n", b"2\r\n{}\r\n0\r\nx y: z\r\n\r\n"],
    ids=repr,
)
def test_a_body_behind_which_something_is_wrong_is_not_complete(end: bytes) -> None:
    sink = parse(CHUNKED + end + GET + b"\r\n")
    assert [(got.body, got.complete) for got in sink.found] == [(b"{}", False)]
    assert [status for status, _ in sink.refusals] == [400]


def test_trailers_change_neither_the_head_nor_what_follows() -> None:
    trailers = b"Host: b\r\nX-Api-Key: c\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    sink = parse(CHUNKED + b"2\r\n{}\r\n0\r\n" + trailers + GET + b"\r\n")
    assert [got.headers.get("host") for got in sink.found] == ["a", "a"]
    assert "x-api-key" not in sink.found[0].headers
    assert [got.complete for got in sink.found] == [True, True]


@pytest.mark.parametrize("version", ["0.9", "2.0"])
def test_other_versions_are_refused(version: str) -> None:
    sink = parse(GET.replace(b"1.1", version.encode()) + b"\r\n")
    assert sink.refusals == [(505, f"HTTP/1.1 and HTTP/1.0 are spoken here, got HTTP/{version}")]
    assert sink.found == []


def test_a_request_line_without_a_version_is_refused() -> None:
    assert [status for status, _ in parse(b"GET /\r\n\r\n").refusals] == [505]


@pytest.mark.parametrize("tail", [b"\r\n", b"Upgrade: x\r\nConnection: upgrade\r\n\r\n"])
def test_this_is_no_proxy(tail: bytes) -> None:
    sink = parse(b"CONNECT a:1 HTTP/1.1\r\n" + HOST + tail, b"anything")
    assert sink.refusals == [(501, "this is no proxy")]
    assert sink.found == []


@pytest.mark.parametrize(
    ("line", "keeps"),
    [(b"", True), (b"Connection: close\r\n", False)],
    ids=["keeps", "closes"],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_an_offer_of_another_protocol_is_passed_over(
    version: bytes, line: bytes, keeps: bool
) -> None:
    offer = (POST + UPGRADE + line).replace(b"HTTP/1.1", b"HTTP/" + version)
    sink = parse(offer + b"Content-Length: 2\r\n\r\n{}")
    assert sink.refusals == []
    (got,) = sink.found
    assert (got.version, got.body, got.complete) == (version.decode(), b"{}", True)
    assert got.keeps == (keeps and version == b"1.1")
    assert got.headers["http2-settings"] == "AAMA"
    assert "upgrade" not in got.headers


def test_what_follows_an_offer_and_its_body_is_the_next_request() -> None:
    sink = parse((CHUNKED[:-2] + UPGRADE + b"\r\n2\r\n{}\r\n0\r\n\r\n") * 3)
    assert [(got.body, got.complete) for got in sink.found] == [(b"{}", True)] * 3


@pytest.mark.parametrize("size", [1, 2**16], ids=["in bytes", "at once"])
@pytest.mark.parametrize(
    ("start", "unit"),
    [
        (b"GET /", b"a"),
        (GET + b"x: ", b"a"),
        (GET + b"x", b"a"),
        (GET, b"a: b\r\n"),
        (CHUNKED + b"0\r\n\r\nGET /", b"a"),
    ],
    ids=["target", "value", "name", "fields", "second"],
)
def test_a_long_head_is_refused_before_it_ends(start: bytes, unit: bytes, size: int) -> None:
    sink = Sink()
    parser = RequestParser(sink)
    parser.feed(start)
    sent = 0
    while not parser.broken:
        parser.feed(unit * size)
        sent += len(unit) * size
        assert sent <= HEAD_BYTES + 2 * len(unit) * size
    assert [status for status, _ in sink.refusals] == [431]


def test_the_size_of_a_head_counts_each_field() -> None:
    """As in HTTP/2: the names and values, and 32 bytes for each."""
    most = (HEAD_BYTES - len("/") - len("Hosta") - 32) // (len("ab") + 32)
    assert parse(GET + b"a:b\r\n" * most + b"\r\n").refusals == []
    found = parse(GET + b"a:b\r\n" * (most + 1) + b"\r\n").refusals
    assert [status for status, _ in found] == [431]


def test_an_empty_line_begins_no_head() -> None:
    sink = Sink()
    parser = RequestParser(sink)
    parser.feed(b"\r\n\r\n")
    assert (sink.heads, parser.in_head) == (0, False)
    parser.feed(b"G")
    assert (sink.heads, parser.in_head) == (1, True)


def test_a_fault_of_our_own_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Sink):
        def opened(self, head: Head) -> None:
            raise ZeroDivisionError

    sink = Broken()
    RequestParser(sink).feed(GET + b"\r\n")
    assert sink.refusals == [(500, "internal error")]
    assert "ZeroDivisionError" in caplog.text


def test_a_field_that_came_twice_is_joined() -> None:
    (got,) = parse(GET + b"X-A: b \r\nx-a:\tc\t\r\nX-B:\r\n\r\n").found
    assert got.headers == {"host": "a", "x-a": "b, c", "x-b": ""}
