"""Format the server's log lines: plain for people, or JSON for a collector of logs."""

import json
import logging
import sys
import time
from typing import Literal

LogFormat = Literal["plain", "json"]
_EXTRAS = ("request_id", "ms")


class JsonFormatter(logging.Formatter):
    """Writes each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, logger, message, and the request's id and milliseconds if given."""
        content = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name in _EXTRAS if (value := getattr(record, name, None))},
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content)


class PlainFormatter(logging.Formatter):
    """Writes each record as one line of text, followed by a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time and message, and the request's id and milliseconds if given."""
        extras = [f"{n}={v}" for n in _EXTRAS if (v := getattr(record, n, None))]
        message = " ".join([self.formatTime(record, "%H:%M:%S"), record.getMessage(), *extras])
        # escape line breaks, so that a request cannot forge log lines
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(log_format: LogFormat) -> None:
    """Send the server's log lines, and the warnings of libraries, to stderr in this format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else PlainFormatter())
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("serving").setLevel(logging.INFO)


def log_answer(logger: logging.Logger, text: str, request_id: str, started: float) -> None:
    """Log an answer, with the id of its request and the milliseconds since `started`."""
    ms = round((time.perf_counter() - started) * 1e3, 3)
    logger.info("%s", text, extra={"request_id": request_id, "ms": ms})
