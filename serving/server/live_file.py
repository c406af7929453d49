"""What a worker knows of its live rows: the file that the observer writes, and what it warns of."""

import logging
import math
from datetime import UTC, datetime
from pathlib import Path

from serving.live_status import LiveStatus

LOG = logging.getLogger(__name__)
_DIGITS = 3


class LiveFile:
    """The `LiveStatus` that the observer wrote last, read again when its file has changed.

    Args:
        path: the file, which need not exist; None for a server that watches no rows.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._status: LiveStatus | None = None

    def read(self, digest: str) -> LiveStatus | None:
        """Return what is known of the version with this digest; None without any."""
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        if (seen := (found.st_mtime_ns, found.st_ino)) != self._seen:
            self._seen, self._status = seen, _read(self._path)
        status = self._status
        return status if status is not None and status.digest == digest else None


def _read(path: Path) -> LiveStatus | None:
    try:
        return LiveStatus.read(path)
    except (OSError, ValueError, KeyError, TypeError):
        LOG.exception("cannot read what is known of the live rows: %s", path)
        return None


def warnings_of(status: LiveStatus | None) -> list[str]:
    """Say in whole sentences what needs a person: drift, or a part that does not work."""
    if status is None:
        return []
    found = []
    drift, shadow, capture = status.drift, status.shadow, status.capture
    fault = status.shadow_fault
    if drift is not None and drift.alarm_time is not None:
        when = datetime.fromtimestamp(drift.alarm_time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        rows = "" if drift.alarm_rows is None else f", after {drift.alarm_rows:,} rows"
        what = f" ({', '.join(drift.drifted)})" if drift.drifted else ""
        found.append(
            f"drift: live rows are no longer like the held-out rows{what}, noticed at "
            f"{when}{rows}; "
            f"the e-value is {e_value_text(drift.log_e_value)}, the alarm is at "
            f"{1 / drift.level:,.0f}"
        )
    if shadow is not None and fault:
        found.append(f"shadow: {shadow.name or 'the challenger'} does not score: {fault}")
    if capture is not None and capture.fault:
        found.append(f"capture: no rows are kept: {capture.fault}")
    return found


def e_value_text(log_e_value: float) -> str:
    """Write an e-value by its natural logarithm, which may be far beyond any float."""
    exponent = log_e_value / math.log(10)
    if not math.isfinite(exponent):
        return "unknown"
    if abs(exponent) < _DIGITS:
        return f"{10**exponent:.{_DIGITS}g}"
    power = math.floor(exponent)
    return f"{10 ** (exponent - power):.1f}e{power:+d}"
