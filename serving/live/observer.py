"""The observer of a server: a process that scores and keeps the rows that the workers hand it.

Nothing waits for it: it runs when no other process wants the processor, and what it has no time for
stays with the workers, who drop it. It follows the version served, by the same file as the workers.
Every second it writes a `LiveStatus`. It ends when the parent process closes its pipe, after it has
taken up what is in the socket; the parent starts it again if it dies.
"""

import contextlib
import json
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from serving.live.capture import Capture
from serving.live.options import Drift, ObserverOptions
from serving.live.scored_version import ScoredVersion, open_version
from serving.live.shadow import Shadow
from serving.live_rows import MAX_MESSAGE, LiveRows
from serving.live_status import LiveStatus

LOG = logging.getLogger(__name__)
NAME = "vae-observer"
"""The name of the process in lists of processes."""
BATCH_ROWS = 256
"""Rows that are scored at a time, so that rows that wait in the socket need not wait for long."""
HELD_BYTES = 16 * 2**20
"""Bytes of rows in memory that wait to be scored."""
STATUS_S = 1.0
GATHER_S = 0.25
"""Seconds between two looks at the socket: rows that come one by one are scored together, and the
processor's caches are left to the workers in between."""
MOST_BUSY = 0.2
"""Share of a core that it takes at most. Idle priority is not enough: where other programs, or
a limit of the container, share out the processor, its time is taken from that of the workers."""


class Observer:
    """Takes up rows, and says what it has seen."""

    def __init__(self, rows: socket.socket, options: ObserverOptions) -> None:
        self._socket = rows
        self._options = options
        self._held: deque[LiveRows] = deque()
        self._held_bytes = 0
        self._received = 0
        self._dropped = 0
        self._version: ScoredVersion | None = None
        self._changed_ns = 0
        self._refused: set[str] = set()
        self._drift: Drift | None = None
        self._capture = Capture(options.capture) if options.capture else None
        self._shadow: Shadow | None = None
        if options.challenger_file is not None and options.sums_file is not None:
            self._shadow = Shadow(options.challenger_file, options.sums_file)
        self._status_at = 0.0

    def run(self, alive: Connection) -> None:
        """Work until the parent closes its end of `alive`; then take up what is left."""
        ended = False
        while not (ended and not self._held):
            ended = self._wait(alive) or ended
            spent = time.process_time()
            self._receive()
            self._work()
            if time.monotonic() >= self._status_at:
                self._tell()
            if not ended:
                ended = self._rest(alive, time.process_time() - spent)
        if self._capture is not None:
            self._capture.finish()
        self._tell()

    def _wait(self, alive: Connection) -> bool:
        """Wait for rows until the next status is due; return whether the parent has closed."""
        left = 0.0 if self._held else max(0.0, self._status_at - time.monotonic())
        ready, _, _ = select.select([self._socket.fileno(), alive.fileno()], [], [], left)
        return alive.fileno() in ready

    def _rest(self, alive: Connection, spent_s: float) -> bool:
        """Let rows gather, and stay within `MOST_BUSY`; return whether the parent has closed."""
        rest_s = max(0.0 if self._held else GATHER_S, spent_s * (1 / MOST_BUSY - 1))
        return bool(select.select([alive.fileno()], [], [], rest_s)[0])

    def _receive(self) -> None:
        """Take messages out of the socket while there is room for them."""
        while self._held_bytes < HELD_BYTES:
            try:
                message = self._socket.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            try:
                rows = LiveRows.unpack(message)
            except Exception:  # as in `_work`
                LOG.exception("a message could not be read")
                continue
            self._received += rows.rows
            self._held.append(rows)
            self._held_bytes += rows.held_bytes

    def _work(self) -> None:
        """Take up one batch of what is held; what fails is said once, and dropped."""
        batch: list[LiveRows] = []
        rows = 0
        while self._held and (not batch or rows + self._held[0].rows <= BATCH_ROWS):
            each = self._held.popleft()
            self._held_bytes -= each.held_bytes
            rows += each.rows
            batch.append(each)
        if not batch:
            return
        try:
            self._follow()
            known = [each for each in batch if self._knows(each)]
            self._dropped += rows - sum(each.rows for each in known)
            self._take_up(known)
        except Exception:  # the observer must go on with other rows
            LOG.exception("rows could not be observed")
            self._dropped += rows

    def _knows(self, rows: LiveRows) -> bool:
        version = self._version
        return version is not None and rows.digest == version.digest and version.fits(rows.x)

    def _take_up(self, batch: list[LiveRows]) -> None:
        if self._capture is not None:
            for each in batch:
                if each.captured:
                    self._capture.add(each)
        watched = [each for each in batch if each.watched]
        if not watched or self._version is None:
            return
        x, now = np.concatenate([each.x for each in watched]), watched[-1].time
        scores = self._version.score(x)
        if self._drift is not None:
            self._drift.add(scores, now)
        if self._shadow is not None:
            self._shadow.add(self._version, x, scores["elbo"], now)

    def _follow(self) -> None:
        """Open the version that is served now, unless it is open."""
        file = self._options.version_file
        changed = file.stat().st_mtime_ns
        if changed != self._changed_ns:
            served = json.loads(file.read_bytes())
            if self._version is None or served["digest"] != self._version.digest:
                self._begin(open_version(Path(served["path"]), served["digest"]))
            self._changed_ns = changed
        if self._shadow is not None and self._version is not None:
            self._shadow.follow(self._version)

    def _begin(self, version: ScoredVersion) -> None:
        if self._capture is not None:
            self._capture.begin(version.bundle)
        if self._options.open_drift is not None:
            self._drift = self._options.open_drift(version.bundle)
        self._version = version

    def _tell(self) -> None:
        """Write the status; whatever fails, such as a full disk, must not end the observer."""
        self._status_at = time.monotonic() + STATUS_S
        steps: list[Callable[[], None]] = [self._follow]
        if self._capture is not None:
            steps.append(self._capture.tick)
        if self._shadow is not None:
            steps.append(self._shadow.save)
        steps.append(lambda: self._status(time.time()).write(self._options.status_file))
        refused = set()
        for step in steps:
            try:
                step()
            except Exception as err:  # noqa: BLE001 - said, and tried again in a second
                refused.add(str(err))
                if str(err) not in self._refused:
                    LOG.warning("cannot observe: %s", err)
        self._refused = refused

    def _status(self, now: float) -> LiveStatus:
        capture, shadow, drift = self._capture, self._shadow, self._drift
        return LiveStatus(
            time=now,
            digest="" if self._version is None else self._version.digest,
            rows=self._received,
            dropped_rows=self._dropped + (capture.dropped_rows if capture else 0),
            drift=drift.status(now) if drift else None,
            shadow=shadow.status() if shadow else None,
            capture=capture.status() if capture else None,
        )


def observe(rows: socket.socket, alive: Connection, options: ObserverOptions) -> None:
    """Run the observer: the entry of its process."""
    _be_modest()
    Observer(rows, options).run(alive)


def _be_modest() -> None:
    """Run only when no other process wants the processor, under a name of its own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(NAME)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return
    with contextlib.suppress(OSError):
        os.nice(19)
