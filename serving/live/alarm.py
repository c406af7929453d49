"""Tell another service that live rows have drifted: one POST of JSON when an alarm begins.

The message is signed as Standard Webhooks (standardwebhooks.com) say, if there is a secret: the
header `webhook-signature` is `v1,` and the base64 of the HMAC-SHA256 of `ID.TIMESTAMP.BODY`. It is
sent from a thread of its own, and a few times if nobody answers; all attempts carry the same
`webhook-id`, and so does a later one after the observer has died, so that a receiver can tell
repeats. Nothing is raised, and nothing waits: what fails is logged. The log names the host alone,
since the path of such a URL is often a secret.
"""

import base64
import hashlib
import hmac
import http.client
import json
import logging
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from serving.errors import UsageRefused
from serving.live_status import DriftStatus

LOG = logging.getLogger(__name__)
TIMEOUT_S = 10.0
PAUSES_S = (1.0, 10.0, 60.0, 300.0)
"""Time between two attempts; there is one more attempt than pauses."""
_FINAL = frozenset(range(300, 500)) - {408, 425, 429}
"""Answers after which another attempt would be answered no better."""


def check_alarm_url(url: str) -> None:
    """Refuse what no message can be sent to.

    Raises:
        UsageRefused: say why.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        # urllib can send to none of these, and would say the whole URL in its errors
        usable = usable and "@" not in parts.netloc and re.search("[^!-~]", url) is None
    except ValueError:
        usable = False
    if not usable:
        raise UsageRefused(
            "--alarm-url must be http://HOST/… or https://HOST/…, in ASCII without spaces, a user "
            "or a password"
        )


@dataclass(slots=True)
class AlarmSender:
    """Sends each alarm once.

    Args:
        url: where to.
        secret: signs the messages; without it they are not signed.
        pauses_s: time between two attempts.
    """

    url: str
    secret: str = ""
    pauses_s: Sequence[float] = PAUSES_S
    sent: int = field(default=0, init=False)
    """Messages that were taken."""
    fault: str | None = field(default=None, init=False)
    """Why the last message was not taken."""
    _begun: set[str] = field(default_factory=set, init=False)

    def watch(self, drift: DriftStatus, served: Mapping[str, Any]) -> threading.Thread | None:
        """Send a message if an alarm has begun that none was sent of; return the thread, if so.

        `served` says what is served, with its `digest`: it becomes part of the message.
        """
        if drift.alarm_time is None:
            return None
        identity = hashlib.sha256(f"{served['digest']} {drift.alarm_time!r}".encode()).hexdigest()
        if identity in self._begun:
            return None
        self._begun.add(identity)
        body = json.dumps({**describe_alarm(drift, served), "id": identity[:32]}).encode()
        sender = threading.Thread(
            target=self._send, args=(identity[:32], body), name="alarm", daemon=True
        )
        sender.start()
        return sender

    def _send(self, identity: str, body: bytes) -> None:
        host = urlsplit(self.url).hostname
        for pause_s in (*self.pauses_s, None):
            try:
                self._post(identity, body)
            except urllib.error.HTTPError as err:
                self.fault, final = f"{host} answered {err.code}", err.code in _FINAL
                err.close()
            except (OSError, http.client.HTTPException, ValueError) as err:
                reason = err.reason if isinstance(err, urllib.error.URLError) else err
                self.fault, final = f"{host}: {reason}", False
            else:
                self.fault, self.sent = None, self.sent + 1
                LOG.info("%s was told of the drift", host)
                return
            if pause_s is None or final:
                LOG.error("nobody was told of the drift: %s", self.fault)
                return
            LOG.warning("the drift is told again in %g s: %s", pause_s, self.fault)
            time.sleep(pause_s)

    def _post(self, identity: str, body: bytes) -> None:
        headers = {"content-type": "application/json", "user-agent": "vae-pipeline"}
        headers |= sign_message(identity, int(time.time()), body, self.secret)
        request = urllib.request.Request(self.url, body, headers, method="POST")
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            answer.read(1)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an error: following it would turn the POST into a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


def sign_message(identity: str, stamp: int, body: bytes, secret: str) -> dict[str, str]:
    """Return the headers that identify a message, and its signature if there is a secret."""
    headers = {"webhook-id": identity, "webhook-timestamp": str(stamp)}
    if secret:
        signed = f"{identity}.{stamp}.".encode() + body
        digest = hmac.digest(secret.encode(), signed, "sha256")
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def describe_alarm(drift: DriftStatus, served: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message: `text` for a person, as chats show it, and the figures."""
    since = drift.since_time
    when = "" if since is None else f" since about {_show_time(since)}"
    what = ", ".join("whole rows" if name == "elbo" else name for name in drift.drifted)
    name = " version ".join(str(served[key]) for key in ("name", "version") if served.get(key))
    text = (
        f"The rows sent to {name or 'the model'} differ from its held-out rows{when}: {what}. "
        f"Found after {drift.alarm_rows:,} rows; the chance of a false alarm is {drift.level:g} "
        "over the whole time that the version is served."
    )
    return {
        "event": "drift",
        "text": text,
        "served": dict(served),
        "alarm_time": drift.alarm_time,
        "alarm_rows": drift.alarm_rows,
        "since_time": since,
        "drifted": list(drift.drifted),
        "log_e_value": drift.log_e_value,
        "level": drift.level,
    }


def _show_time(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
