import fcntl
import os
import struct
import sys
import termios
import time
from collections.abc import Callable
from contextlib import redirect_stderr

import pytest

from serving.console import Progress, progress, say, warn


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def shown_on_a_terminal(write: Callable[[], None]) -> str:
    """What a function writes to stderr if stderr is a terminal."""
    screen, keyboard = os.openpty()
    with os.fdopen(screen, "rb", buffering=0) as read:
        with os.fdopen(keyboard, "w") as stderr, redirect_stderr(stderr):
            write()
        chunks = []
        try:
            while chunk := read.read(1000):
                chunks.append(chunk)
        except OSError:  # Linux: the terminal is closed, and all that was written has been read
            pass
    return b"".join(chunks).decode()


def silent_for_100_s(total: int) -> Progress:
    then = time.monotonic() - 100
    return Progress(total, "rows", started=then, said=then)


def test_a_terminal_has_one_line_that_changes_and_is_cleared() -> None:
    def write() -> None:
        bar = silent_for_100_s(5000)
        bar.skip(1000)
        bar.advance(2000)
        bar.say("epoch 1")
        bar.clear()

    assert shown_on_a_terminal(write) == (
        "\r\033[K3,000 of 5,000 rows, 20 rows/s, 1:40 left\r\033[Kepoch 1\r\n\r\033[K"
    )


def test_a_slow_rate_is_not_shown_as_zero(capsys: pytest.CaptureFixture[str]) -> None:
    silent_for_100_s(40).advance(25)
    assert capsys.readouterr().err == "25 of 40 rows, 0.25 rows/s, 1:00 left\n"


def test_a_narrow_terminal_has_no_line_that_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    shown = shown_on_a_terminal(lambda: silent_for_100_s(5000).advance(2000))
    assert shown == "\r\033[K2,000 of 5,000 rows"[: 4 + 19]


def test_a_terminal_that_cannot_clear_a_line_gets_whole_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown = shown_on_a_terminal(lambda: silent_for_100_s(5000).advance(2000))
    assert shown == "2,000 of 5,000 rows, 20 rows/s, 2:30 left\r\n"


def test_a_block_that_fails_clears_the_line() -> None:
    def fail() -> None:
        with progress(10, "rows"):
            raise KeyboardInterrupt

    def write() -> None:
        with pytest.raises(KeyboardInterrupt):
            fail()

    assert shown_on_a_terminal(write) == "\r\033[K"


def test_elsewhere_a_line_follows_only_after_silence(capsys: pytest.CaptureFixture[str]) -> None:
    bar = silent_for_100_s(5000)
    bar.skip(1000)
    bar.advance(2000)
    bar.advance(1000)
    bar.say("epoch 1")
    bar.clear()
    assert capsys.readouterr().err == "3,000 of 5,000 rows, 20 rows/s, 1:40 left\nepoch 1\n"


def test_a_warning_is_red_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    shown = shown_on_a_terminal(lambda: warn("no latent is active"))
    assert shown == "\x1b[31m\x1b[1mwarning: no latent is active\x1b[0m\r\n"
    warn("no latent is active")
    assert capsys.readouterr().err == "warning: no latent is active\n"


LONG = "error: there is no model 'nope' in sqlite:////home/me/mlflow.db, which has held-out rows"
COMMAND = "  vae sample --model models:/digits@champion --count 64 --seed 7 --out the-samples.png"


def test_a_terminal_breaks_no_word() -> None:
    path = f"  {'/folder' * 20}"
    shown = shown_on_a_terminal(lambda: say(f"{LONG}\n\n  {LONG}\n{path}"))
    assert shown.splitlines() == [
        "error: there is no model 'nope' in sqlite:////home/me/mlflow.db, which has",
        "  held-out rows",
        "",
        "  error: there is no model 'nope' in sqlite:////home/me/mlflow.db, which has",
        "    held-out rows",
        path,
    ]


def test_a_warning_is_wrapped_too() -> None:
    shown = shown_on_a_terminal(lambda: warn(LONG))
    assert max(len(line) for line in shown.splitlines()) < 80 + len("\033[31m\033[1m")


@pytest.mark.parametrize("start", ["", "  . /a/very/long/path && ", "next:"])
def test_a_command_to_copy_stays_one_line(start: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"{start}{COMMAND}".replace(":  ", ": ")
    assert shown_on_a_terminal(lambda: say(command)) == f"{command}\r\n"
    say(LONG)
    assert capsys.readouterr().err == f"{LONG}\n"  # as it is in a file


def test_lines_of_a_file_to_copy_stay_whole() -> None:
    assert shown_on_a_terminal(lambda: say(LONG, wrap=False)) == f"{LONG}\r\n"


def test_the_width_is_that_of_the_terminal_of_stderr() -> None:
    """As in `vae list | jq`, where stdout is no terminal."""

    def write() -> None:
        fcntl.ioctl(sys.stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        say(LONG)

    assert shown_on_a_terminal(write) == f"{LONG}\r\n"
