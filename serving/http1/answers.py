"""Write the heads of answers (RFC 9112, section 4; RFC 9110, sections 6.4.1 and 6.6.1)."""

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from serving.http1.exchange import Fields

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_WITHOUT_CONTENT = (204, 304)


def has_content(method: str, status: int) -> bool:
    """Whether an answer is followed by its body."""
    return method != "HEAD" and status not in _WITHOUT_CONTENT


def write_head(version: str, status: int, fields: Fields, length: int, keeps: bool) -> bytes:
    """Return the status line and the header fields of an answer, with those that every one has."""
    lines = [f"{name}: {value}\r\n" for name, value in fields]
    if status not in _WITHOUT_CONTENT:
        lines.append(f"content-length: {length}\r\n")
    if not keeps:
        lines.append("connection: close\r\n")
    elif version == "1.0":
        lines.append("connection: keep-alive\r\n")
    text = "".join((_status_line(version, status), *lines, _date_line(int(time.time()))))
    return text.encode("latin-1")


@lru_cache
def _status_line(version: str, status: int) -> str:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = ""  # RFC 9112 lets it be empty
    return f"HTTP/{version} {status} {reason}\r\n"


@lru_cache(1)
def _date_line(second: int) -> str:
    return f"date: {formatdate(second, usegmt=True)}\r\n\r\n"
