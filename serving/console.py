"""What a command prints: words for a person on stderr, one JSON line on stdout, and progress."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click


def say(message: str) -> None:
    """Tell a person something, on stderr."""
    click.echo(message, err=True)


def finish(content: Mapping[str, Any]) -> None:
    """Print the result as stdout's last line, in JSON; a number that is not finite is null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in content.items()
    }
    click.echo(json.dumps(plain, allow_nan=False))


@contextmanager
def progress(length: int, label: str) -> Iterator["Progress"]:
    """A bar on a terminal; silence elsewhere, where `Progress.say` writes plain lines."""
    if not sys.stderr.isatty():
        yield Progress(None)
        return
    steps = max(1, length // 500)
    with click.progressbar(
        length=length, label=label, file=sys.stderr, update_min_steps=steps
    ) as bar:
        yield Progress(bar)


class Progress:
    """Advances a bar, if there is one, and prints lines above it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, steps: int) -> None:
        """Move on by `steps`."""
        if self._bar is not None:
            self._bar.update(steps)

    def say(self, message: str) -> None:
        """Print a line."""
        say(message if self._bar is None else f"\r\033[K{message}")


_LINE_S = 10.0

_BAR_S = 0.2


@dataclass(slots=True)
class RowProgress:
    """How far the job is: one line that changes on a terminal, a line now and then elsewhere."""

    total: int
    done: int = 0
    skipped: int = 0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    terminal: bool = field(default_factory=lambda: sys.stderr.isatty())

    def skip(self, rows: int) -> None:
        """Rows were done before."""
        self.done += rows
        self.skipped += rows

    def advance(self, rows: int) -> None:
        """Rows are done."""
        self.done += rows
        now = time.monotonic()
        if now - self.said < (_BAR_S if self.terminal else _LINE_S):
            return
        self.said = now
        rate = (self.done - self.skipped) / (now - self.started)
        left = round((self.total - self.done) / rate)
        line = (
            f"{self.done:,} of {self.total:,} rows, {rate:,.0f} rows/s, "
            f"{left // 60}:{left % 60:02d} left"
        )
        click.echo(f"\r\033[K{line}" if self.terminal else line, err=True, nl=not self.terminal)

    def end(self) -> None:
        """Clear the line."""
        if self.terminal:
            click.echo("\r\033[K", err=True, nl=False)
