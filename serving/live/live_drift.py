"""Begin the test of drift when a version is served, keep its state, and tell of its alarm.

In: what the parent process of a server hands to the observer. Out: for each version a `LiveDrift`,
to which the observer gives the scores of live rows.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.drift_test import LEVEL
from serving.errors import VaeError
from serving.live.alarm import AlarmSender
from serving.live.drift_watch import DriftWatch, watch_drift
from serving.live_status import DriftStatus

Array = NDArray[Any]

LOG = logging.getLogger(__name__)
SAVE_S = 60.0
"""Time between two saves of the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftOpener:
    """Begins the test for each version; it can be sent to another process."""

    level: float = LEVEL
    state_file: Path | None = None
    """Where the state is kept, for an observer that is started again."""
    version_file: Path | None = None
    """Names the version served, for the message of an alarm."""
    alarm_url: str = ""
    """Where an alarm is told; empty for nowhere."""
    alarm_secret: str = field(default="", repr=False)

    def __call__(self, bundle: Bundle) -> "LiveDrift | None":
        """Begin the test, or go on where an earlier process was; None if there can be none."""
        try:
            watch = watch_drift(bundle, self.level)
        except VaeError as err:
            watch = str(err)
        if isinstance(watch, str):
            LOG.warning("live rows are not watched for drift: %s", watch)
            return None
        if self.state_file is not None and watch.load(self.state_file):
            LOG.info("the test of drift goes on after %d rows", watch.status(0.0).rows)
        sender = AlarmSender(self.alarm_url, self.alarm_secret) if self.alarm_url else None
        return LiveDrift(watch, self._describe(bundle), self.state_file, sender)

    def _describe(self, bundle: Bundle) -> dict[str, Any]:
        """Say what is served."""
        served: dict[str, Any] = {"name": None, "version": None}
        if self.version_file is not None:
            content = json.loads(self.version_file.read_bytes())
            if content["digest"] == bundle.manifest.digest:
                served = {name: content[name] for name in served}
        return {**served, "digest": bundle.manifest.digest}


@dataclass(slots=True)
class LiveDrift:
    """The test of one version."""

    watch: DriftWatch
    served: Mapping[str, Any]
    state_file: Path | None = None
    sender: AlarmSender | None = None
    _saved: float = field(default=0.0, init=False)
    _alarm: bool = field(default=False, init=False)

    def add(self, scores: Mapping[str, Array], now: float) -> None:
        """Compare rows, given by the outputs of `score`; `now` is a Unix time."""
        self.watch.add(scores, now)
        begins = not self._alarm and self.watch.has_alarm
        if begins:
            self._alarm = True
            self._tell(now)
        if self.state_file is not None and (begins or abs(now - self._saved) >= SAVE_S):
            self._saved = now
            self._save(self.state_file)

    def status(self, now: float) -> DriftStatus:
        """Return what was found so far."""
        return self.watch.status(now)

    def _tell(self, now: float) -> None:
        drift = self.status(now)
        LOG.warning(
            "live rows differ from the held-out rows: %s, after %s rows",
            ", ".join(drift.drifted),
            drift.alarm_rows,
        )
        if self.sender is not None:
            self.sender.watch(drift, self.served)

    def _save(self, file: Path) -> None:
        try:
            self.watch.save(file)
        except VaeError as err:
            LOG.warning("the state of the test of drift is not kept: %s", err)
