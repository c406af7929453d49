"""One call when drift begins, which nothing waits for."""

import base64
import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serving.errors import UsageRefused
from serving.live.alarm import PAUSES_S, AlarmSender, check_alarm_url
from serving.live_status import DriftStatus

CALM = DriftStatus(rows=500, log_e_value=1.0, level=0.01)
ALARM = replace(
    CALM,
    log_e_value=5.5,
    alarm_time=1700000100.5,
    alarm_rows=480,
    since_time=1700000000.0,
    drifted=("elbo", "age"),
)
SERVED = {"name": "vae", "version": "7", "digest": "ab"}


class Receiver:
    """A server that keeps what it gets, and answers with the next of its codes."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.codes: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                code = receiver.codes.pop(0) if receiver.codes else 204
                self.send_response(code)
                if code == 302:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook/secret-path"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.server.shutdown()
    started.server.server_close()


def tell(sender: AlarmSender, drift: DriftStatus = ALARM) -> None:
    thread = sender.watch(drift, SERVED)
    assert thread is not None
    thread.join(20)
    assert not thread.is_alive()


def test_an_alarm_is_told_once_and_calm_never(receiver: Receiver) -> None:
    sender = AlarmSender(receiver.url)
    assert sender.watch(CALM, SERVED) is None
    tell(sender)
    assert sender.watch(replace(ALARM, rows=600, log_e_value=9.0), SERVED) is None
    assert len(receiver.got) == sender.sent == 1
    headers, body = receiver.got[0]
    content = json.loads(body)
    assert content["event"] == "drift"
    assert content["served"] == SERVED
    assert content["drifted"] == ["elbo", "age"]
    assert content["text"] == (
        "The rows sent to vae version 7 differ from its held-out rows since about "
        "2023-11-14 22:13 UTC: whole rows, age. Found after 480 rows; the chance of a false alarm "
        "is 0.01 over the whole time that the version is served."
    )
    assert headers["content-type"] == "application/json"
    assert "webhook-signature" not in headers


def test_the_alarm_of_another_version_is_told_too(receiver: Receiver) -> None:
    sender = AlarmSender(receiver.url)
    tell(sender)
    thread = sender.watch(ALARM, {**SERVED, "digest": "cd"})
    assert thread is not None
    thread.join(20)
    first, second = (headers["webhook-id"] for headers, _ in receiver.got)
    assert first != second


def test_a_message_is_signed_as_standard_webhooks_are(receiver: Receiver) -> None:
    tell(AlarmSender(receiver.url, "hush"))
    headers, body = receiver.got[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"hush", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    other = hmac.new(b"hush", signed + b" ", hashlib.sha256).digest()
    assert base64.b64encode(other).decode() != expected


def test_it_is_told_again_until_it_is_taken_with_the_same_id(receiver: Receiver) -> None:
    receiver.codes = [503, 429, 200]
    sender = AlarmSender(receiver.url, pauses_s=(0, 0, 0))
    tell(sender)
    assert len(receiver.got) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert (sender.sent, sender.fault) == (1, None)


@pytest.mark.parametrize("code", [400, 404, 302])
def test_what_would_be_refused_again_is_not_sent_again(
    receiver: Receiver, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.codes = [code]
    sender = AlarmSender(receiver.url, pauses_s=(0, 0))
    with caplog.at_level(logging.INFO):
        tell(sender)
    assert len(receiver.got) == 1
    assert sender.fault == f"127.0.0.1 answered {code}"
    assert "nobody was told of the drift" in caplog.text
    assert "secret-path" not in caplog.text


def test_nobody_there_is_a_fault_after_all_attempts(caplog: pytest.LogCaptureFixture) -> None:
    sender = AlarmSender("http://127.0.0.1:9/x", pauses_s=(0, 0))
    with caplog.at_level(logging.INFO):
        tell(sender)
    assert caplog.text.count("told again") == 2
    assert sender.fault is not None
    assert sender.fault.startswith("127.0.0.1: ")
    assert sender.sent == 0


def test_nothing_waits_for_an_answer_that_does_not_come() -> None:
    sender = AlarmSender("http://127.0.0.1:9/x", pauses_s=PAUSES_S)
    thread = sender.watch(ALARM, SERVED)
    assert thread is not None
    assert thread.daemon


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.org/x", "ftp://a/b", "http://", "http://a:99999/x"),
        *("http://me:secret@a/b", "https://a/secret b", "https://a/b\n", "https://a/\u00e9"),
    ],
)
def test_a_url_that_nothing_can_be_sent_to_is_refused(url: str) -> None:
    with pytest.raises(UsageRefused, match="--alarm-url") as refused:
        check_alarm_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["https://hooks.example.org/a?b=c", "http://[::1]:8080/"])
def test_other_urls_are_taken(url: str) -> None:
    check_alarm_url(url)
