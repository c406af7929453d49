"""The framing of answers, as h11 reads it."""

import time
from email.utils import parsedate_to_datetime

import pytest

from serving.http1.answers import has_content, write_head
from tests.serving.http1.wire import Server, Wire, read_answers, run, turn


def test_the_lines_of_a_head() -> None:
    head = write_head("1.1", 200, [("a", "b"), ("c", "\xe9")], 12, True)
    *lines, date, empty, end = head.split(b"\r\n")
    assert lines == [b"HTTP/1.1 200 OK", b"a: b", b"c: \xe9", b"content-length: 12"]
    assert (empty, end) == (b"", b"")
    name, _, moment = date.decode().partition(": ")
    assert name == "date"
    assert abs(parsedate_to_datetime(moment).timestamp() - time.time()) < 60
    assert moment.endswith(" GMT")


@pytest.mark.parametrize(
    ("version", "keeps", "line"),
    [
        ("1.1", True, None),
        ("1.1", False, b"connection: close"),
        ("1.0", True, b"connection: keep-alive"),
        ("1.0", False, b"connection: close"),
    ],
)
def test_how_long_the_connection_stays(version: str, keeps: bool, line: bytes | None) -> None:
    lines = write_head(version, 200, (), 0, keeps).split(b"\r\n")
    assert lines[0] == b"HTTP/%s 200 OK" % version.encode()
    assert [each for each in lines if each.startswith(b"connection")] == ([line] if line else [])


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_content_has_no_length(status: int) -> None:
    assert b"content-length" not in write_head("1.1", status, (), 0, True)
    assert not has_content("GET", status)


def test_an_unknown_status_has_no_reason() -> None:
    assert write_head("1.1", 499, (), 0, True).startswith(b"HTTP/1.1 499 \r\n")


def test_the_date_is_that_of_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    for now, text in ((0.9, b"Thu, 01 Jan 1970 00:00:00"), (61.1, b"Thu, 01 Jan 1970 00:01:01")):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert b"date: %s GMT\r\n\r\n" % text in write_head("1.1", 200, (), 0, True)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("status", [200, 204, 304, 404])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_answers_in_a_row_are_framed_as_a_client_expects(
    method: str, status: int, version: str
) -> None:
    """A second answer shows where the first one ends."""
    body = b"" if status in (204, 304) else b"HTTP/1.1 200 OK\r\n\r\n"

    async def go() -> None:
        server = Server()
        wire = Wire(server)
        request = f"{method} / HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n".encode()
        wire.send(request * 2)
        for exchange in server.exchanges:
            exchange.respond(status, [("etag", "x")], body)
            await turn()
        written = wire.take()
        if version == "1.0":  # h11 keeps no connection of HTTP/1.0
            written = written.replace(b"HTTP/1.0", b"HTTP/1.1")
        found = read_answers(written, method, method)
        assert [got.status for got in found] == [status] * 2
        for got in found:
            assert got.body == (b"" if method == "HEAD" else body)
            length = None if status in (204, 304) else str(len(body))
            assert got.headers.get("content-length") == length
            assert got.headers["etag"] == "x"

    run(go())
