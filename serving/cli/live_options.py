"""The options of `vae serve` about live rows: to watch, compare and capture them."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from serving.cli.help_page import group
from serving.cli.options import option
from serving.cli.paths import Target
from serving.errors import UsageRefused

if TYPE_CHECKING:
    from serving.live.live_drift import DriftOpener
    from serving.live.observing import Observing
    from serving.live.options import CaptureOptions
    from serving.server.sampling import LiveShares
    from serving.server.settings import Settings

ALARM_SECRET = "VAE_WEBHOOK_SECRET"
CAPTURE_KEY = "VAE_CAPTURE_KEY"
_MIB, _DAY_S = 2**20, 86_400
_Command = TypeVar("_Command", bound=Callable[..., Any])


def live_options(command: _Command) -> _Command:
    """Add the options."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    group("Live rows"),
    option(
        "--watch-share",
        type=click.FloatRange(0, 1),
        default=0.05,
        help="Share of the requests whose rows are scored, after the answer, to watch for drift "
        "and for --shadow; 0 switches it off",
    ),
    click.option(
        "--shadow",
        metavar="MODEL",
        help="Version to compare on live rows: it scores them too, and never answers. A bundle "
        "folder, models:/NAME/VERSION or models:/NAME@ALIAS, which is followed",
    ),
    option(
        "--drift-level",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.01,
        help="Chance of a false alarm of drift, over the whole time that a version is served",
    ),
    click.option(
        "--alarm-url",
        metavar="URL",
        envvar="VAE_ALARM_URL",
        show_envvar=True,
        help="Where to send a message when an alarm of drift begins; the variable "
        f"{ALARM_SECRET} holds the secret that signs it",
    ),
    click.option(
        "--capture",
        type=Target(),
        help="Folder to keep live rows and answers in, as Parquet files; vae score reads them",
    ),
    option(
        "--capture-share",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.05,
        help="Share of the requests that are kept",
    ),
    option(
        "--capture-seconds",
        type=click.FloatRange(min=0.1),
        default=60.0,
        help="Seconds after which rows are written as a file, or earlier, at 16 MiB",
    ),
    option(
        "--capture-keep-mb",
        type=click.IntRange(min=1),
        default=1024,
        help="MiB of the folder from which the oldest files are removed",
    ),
    option(
        "--capture-keep-days",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        help="Days after which a file is removed",
    ),
    click.option(
        "--capture-leave-out",
        multiple=True,
        metavar="COLUMN",
        help="Column of a table that is not kept; may be repeated",
    ),
    click.option(
        "--capture-hash",
        multiple=True,
        metavar="COLUMN",
        help=f"Column of which a hash is kept, by the key in the variable {CAPTURE_KEY}; may be "
        "repeated",
    ),
)


def check_live_options(options: Mapping[str, Any]) -> None:
    """Refuse options that do not go together, before anything is started.

    Raises:
        UsageRefused: say which.
    """
    for name in ("shadow", "alarm_url"):
        if options[name] and not options["watch_share"]:
            raise UsageRefused(
                f"--{name.replace('_', '-')} is about the rows that are watched: --watch-share "
                "must not be 0"
            )
    if options["shadow"]:
        from serving.source import parse_reference

        parse_reference(options["shadow"])
    if options["alarm_url"]:
        from serving.live.alarm import check_alarm_url

        check_alarm_url(options["alarm_url"])
    for name in ("capture_leave_out", "capture_hash"):
        if options[name] and not options["capture"]:
            raise UsageRefused(f"--{name.replace('_', '-')} is about --capture: name its folder")
    if options["capture_hash"] and not os.environ.get(CAPTURE_KEY):
        raise UsageRefused(
            f"--capture-hash needs a secret in the variable {CAPTURE_KEY}: a hash without a key "
            "is found by trying all values"
        )
    if options["capture"]:
        from serving.live.options import check_capture

        if importlib.util.find_spec("pyarrow") is None:  # the parent itself need not load it
            raise UsageRefused("--capture needs pyarrow: pip install 'vae-pipeline[files]'")
        check_capture(Path(options["capture"]))


@contextmanager
def open_live(options: Mapping[str, Any]) -> "Iterator[tuple[LiveShares | None, Any]]":
    """Return what the workers need to hand rows on, and the observer's end of the socket."""
    captured = options["capture_share"] if options["capture"] else 0.0
    if not (options["watch_share"] or captured):
        yield None, None
        return
    from serving.live.observing import open_sockets
    from serving.server.sampling import LiveShares

    workers, observer = open_sockets()
    with workers, observer:
        shares = LiveShares(rows=workers, watched=options["watch_share"], captured=captured)
        yield shares, observer


def observing(settings: "Settings", rows: Any, options: Mapping[str, Any]) -> "Observing | None":
    """Return the context in which the observer of a server runs, if it has one."""
    if rows is None:
        return None
    from serving.live.challenger import ChallengerFollower, server_id
    from serving.live.observing import Observing
    from serving.live.options import ObserverOptions
    from serving.server.logging_config import configure
    from serving.server.worker_pool import block_signals

    challenger = settings.folder / "challenger.json" if options["shadow"] else None
    sums = settings.folder / "live_sums.json"
    follower = None
    if challenger is not None:
        server = server_id(settings.host, settings.port)
        follower = ChallengerFollower(
            options["shadow"], challenger, sums, server, options["poll_s"], settings.verify_key
        )
    observed = ObserverOptions(
        version_file=settings.version_file,
        status_file=settings.live_file,
        challenger_file=challenger,
        sums_file=sums,
        capture=_capture(options),
        open_drift=_drift(settings, options),
    )
    log = partial(configure, settings.log_format)
    return Observing(rows, observed, log, block_signals, follower)


def _drift(settings: "Settings", options: Mapping[str, Any]) -> "DriftOpener | None":
    if not options["watch_share"]:
        return None
    from serving.live.live_drift import DriftOpener

    return DriftOpener(
        level=options["drift_level"],
        state_file=settings.folder / "drift.npz",
        version_file=settings.version_file,
        alarm_url=options["alarm_url"] or "",
        alarm_secret=os.environ.get(ALARM_SECRET, "").strip(),
    )


def _capture(options: Mapping[str, Any]) -> "CaptureOptions | None":
    if not options["capture"]:
        return None
    from serving.live.options import CaptureOptions

    key = os.environ.get(CAPTURE_KEY, "").encode()
    return CaptureOptions(
        folder=Path(options["capture"]).absolute(),
        keep_bytes=options["capture_keep_mb"] * _MIB,
        keep_s=options["capture_keep_days"] * _DAY_S,
        left_out=frozenset(options["capture_leave_out"]),
        hashed=dict.fromkeys(options["capture_hash"], key),
        part_s=options["capture_seconds"],
    )
