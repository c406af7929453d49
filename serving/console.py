"""What a command prints: messages for a person on stderr, one JSON line on stdout, and progress."""

import json
import math
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click

from serving.errors import VaeError

_TERMINAL_S, _PLAIN_S = 0.2, 10.0
"""Seconds between two lines of progress, on a terminal and elsewhere."""
_CLEAR = "\r\033[K"
_COMMAND = re.compile(r"(?: +|next: )(?:vae|docker|kubectl|make|\.) ")


def say(message: str, *, wrap: bool = True) -> None:
    """Print a message for a person, on stderr; a terminal does not break its words.

    Without `wrap` its lines stay whole, as those of a table and of a file to copy must.
    """
    click.echo(_wrap(message) if wrap else message, err=True)


def warn(message: str) -> None:
    """Print a message that a person must not miss, on stderr; in red on a terminal."""
    click.secho(_wrap(f"warning: {message}"), err=True, fg="red", bold=True)


def screen_width() -> int | None:
    """Return the number of columns of the terminal that stderr is, None if it is none."""
    if not sys.stderr.isatty():
        return None
    # shutil asks the terminal of stdout, which may be a file; some terminals tell no size
    return os.get_terminal_size(sys.stderr.fileno()).columns or shutil.get_terminal_size().columns


def _wrap(message: str) -> str:
    """Break lines that are wider than the terminal between words, except commands to copy."""
    width = screen_width()
    if width is None:
        return message
    return "\n".join(
        line if len(line) <= width or _COMMAND.match(line) else _fill(line, width)
        for line in message.split("\n")
    )


def _fill(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line.lstrip(),
        max(width, 2 * len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def finish(content: Mapping[str, Any]) -> None:
    """Print the result as the last line of stdout, in JSON; a number that is not finite is null.

    Raises:
        VaeError: stdout is on a full disk, or its reader has ended.
    """
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in content.items()
    }
    try:
        click.echo(json.dumps(plain, allow_nan=False))
    except OSError as err:
        raise VaeError(f"cannot write the result to stdout: {err.strerror}") from err


def _can_clear() -> bool:
    """Whether stderr is a terminal that can clear a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def progress(total: int, unit: str) -> Iterator["Progress"]:
    """Show how much of `total` is done; on a terminal, the line is cleared at the end."""
    shown = Progress(total, unit)
    try:
        yield shown
    finally:
        shown.clear()


@dataclass(slots=True)
class Progress:
    """A line that is updated in place on a terminal; elsewhere a new line after 10 s of silence."""

    total: int
    unit: str
    done: int = 0
    skipped: int = 0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    terminal: bool = field(default_factory=_can_clear)

    def skip(self, count: int) -> None:
        """Count what an earlier process did, which is left out of the rate."""
        self.done += count
        self.skipped += count

    def advance(self, count: int) -> None:
        """Count what was done, and print the progress if it is due."""
        self.done += count
        now = time.monotonic()
        if now - self.said < (_TERMINAL_S if self.terminal else _PLAIN_S):
            return
        rate = (self.done - self.skipped) / (now - self.started)
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        left = round((self.total - self.done) / rate)
        line = (
            f"{self.done:,} of {self.total:,} {self.unit}, {shown} {self.unit}/s, "
            f"{left // 60}:{left % 60:02d} left"
        )
        self.said = now
        if self.terminal and (width := screen_width()):  # a wrapped line cannot be cleared
            line = f"{_CLEAR}{line[: width - 1]}"
        click.echo(line, err=True, nl=not self.terminal)

    def say(self, message: str) -> None:
        """Print a message above the line."""
        self.clear()
        say(message)
        self.said = time.monotonic()

    def clear(self) -> None:
        """Clear the line."""
        if self.terminal:
            click.echo(_CLEAR, err=True, nl=False)
