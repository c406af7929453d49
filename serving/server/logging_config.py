"""Log lines of the server: plain for a person, JSON for a collector; both with request ids."""

import json
import logging
import sys
from typing import Literal

LogFormat = Literal["plain", "json"]
_EXTRAS = ("request_id", "ms")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, message, and what the caller added."""
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
    """Time, level and message, and what the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback of an error that nobody expected."""
        extras = [f"{n}={v}" for n in _EXTRAS if (v := getattr(record, n, None))]
        message = " ".join([self.formatTime(record, "%H:%M:%S"), record.getMessage(), *extras])
        # a request may not write lines of its own
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(log_format: LogFormat) -> None:
    """Send the server's log lines to stderr, and the warnings of libraries in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else PlainFormatter())
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("serving").setLevel(logging.INFO)


def granian_config(log_format: LogFormat) -> dict[str, object]:
    """The same for granian's own lines, which would go to stdout."""
    formatter = JsonFormatter if log_format == "json" else PlainFormatter
    handler = {
        "class": "logging.StreamHandler",
        "formatter": "line",
        "stream": "ext://sys.stderr",
    }
    return {
        "formatters": {"line": {"()": formatter}},
        "handlers": {"console": handler, "access": handler},
    }
