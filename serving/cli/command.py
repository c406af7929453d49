"""How every command runs: options as MLflow writes them, exit codes, interrupts.

stdout ends with one JSON line; everything else goes to stderr.
"""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from serving.cli.help_page import HelpPage, write_commands, write_options
from serving.console import say
from serving.cpu import limit_spinning
from serving.errors import UsageRefused, VaeError


class _Context(click.Context):
    formatter_class = HelpPage

    def __init__(self, *args: Any, **attributes: Any) -> None:
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            attributes["color"] = False  # click itself asks only for a terminal
        super().__init__(*args, **attributes)


class Command(click.Command):
    """A command that takes options the way `mlflow run -P` writes them, and shows them in groups.

    MLflow passes every parameter as `--name value`, also flags: `--no-promote true`. A flag that is
    false becomes its opposite; if it has none, it is left out.
    """

    context_class = _Context

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in their groups."""
        write_options(self, ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn `--flag true` into `--flag`, and `--flag false` into `--no-flag` or nothing."""
        opposites: dict[str, list[str]] = {}
        for option in self.params:
            if isinstance(option, click.Option) and option.is_flag:
                opposites |= dict.fromkeys(option.opts, option.secondary_opts[:1])
                opposites |= dict.fromkeys(option.secondary_opts, option.opts[:1])
        plain: list[str] = []
        rest = iter(args)
        following = next(rest, None)
        while following is not None:
            argument, following = following, next(rest, None)
            opposite = opposites.get(argument.replace("_", "-"))
            if (
                opposite is not None
                and following
                and (value := following.lower()) in ("true", "false")
            ):
                plain += [argument] if value == "true" else opposite
                following = next(rest, None)
            else:
                plain.append(argument)
        return super().parse_args(ctx, plain)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, unless the working folder was deleted: libraries would crash."""
        try:
            Path.cwd()
        except FileNotFoundError:
            raise UsageRefused("the working folder was deleted: change to another") from None
        return super().invoke(ctx)


class Group(click.Group):
    """A group whose commands are listed in sections, in the order of their use."""

    context_class = _Context

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.sections: dict[str, tuple[click.Command, ...]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add commands under a heading."""
        self.sections[title] = commands
        for command in commands:
            self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names in the order of the sections."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in their sections, each with a whole sentence."""
        write_commands(self.sections, formatter)


CONTEXT: Mapping[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


_EXTRAS: Mapping[str, str] = {
    **dict.fromkeys(("PIL", "jinja2", "pyarrow"), "files"),
    **dict.fromkeys(("filelock", "mlflow"), "registry"),
    **dict.fromkeys(("matplotlib", "onnx", "onnx_ir", "onnxscript", "packaging", "torch"), "train"),
    "httpx": "client",
    "model_signing": "sign",
    "opentelemetry": "otel",
    "pyspark": "spark",
}
"""The extra that brings each optional package, by the name that it is imported by."""


def run_command(command: click.Command) -> NoReturn:
    """Run a command line and exit with its code; an error that a user can act on is one line."""
    _open_closed_streams()
    _use_utf8()
    limit_spinning()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata; what matters is refused
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _interrupt_again
    sys.exit(_exit_code(command))


def _open_closed_streams() -> None:
    """Open what was closed of stdin, stdout and stderr, to nowhere.

    Otherwise the next file that is opened would have its number, and libraries would write to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, "w" if number else "r"))


def _use_utf8() -> None:
    """Start again in UTF-8 mode where the locale has another encoding.

    Paths and files of this program are UTF-8; Arrow cannot open a path that was read as ASCII.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _exit_code(command: click.Command) -> int:
    try:
        return int(command.main(standalone_mode=False) or 0)
    except click.ClickException as err:
        err.show()
        return err.exit_code
    except VaeError as err:
        say(f"error: {err}")
        return err.exit_code
    except (click.Abort, KeyboardInterrupt) as err:
        if _Terminated in (type(err), type(err.__cause__)):  # click turns both into Abort
            say("terminated")
            return 128 + signal.SIGTERM
        say("interrupted")
        return 128 + signal.SIGINT
    except ModuleNotFoundError as err:
        package = str(err.name).partition(".")[0]
        extra = _EXTRAS.get(package)
        fix = f"'vae-pipeline[{extra}]'" if extra else package
        say(f"error: this command needs {package}: pip install {fix}")
        return UsageRefused.exit_code
    except OSError as err:
        if err.strerror is None:
            raise
        place = f": {err.filename}" if err.filename else ""
        advice = "; name one in TMPDIR" if "temporary directory" in err.strerror else ""
        say(f"error: {err.strerror}{place}{advice}")
        return VaeError.exit_code


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run the way an interrupt does."""


def _terminate(signum: int, frame: object) -> NoReturn:
    raise _Terminated


def _interrupt_again(unraisable: Any) -> None:
    """Repeat an interrupt that came during garbage collection, where Python only reports it."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.SIGTERM if isinstance(unraisable.exc_value, _Terminated) else signal.SIGINT
    main = threading.main_thread().ident
    timer = threading.Timer(0.1, signal.pthread_kill, [main, number])
    timer.daemon = True
    timer.start()
