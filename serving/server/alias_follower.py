"""Which version the workers of a server should serve: a file that the parent writes, they watch.

`Follower` runs in the parent. It looks where the alias points, fetches and verifies a new version,
and only then names it as the target; a version that fails is noted and never served.
"""

import contextlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.errors import VaeError
from serving.files import staged_file
from serving.mlflow_store import alias_version, connect, store_errors
from serving.server.shared_counters import SharedCounters
from serving.source import Registered, Source, open_version, remember

LOG = logging.getLogger(__name__)
TICK_S = 0.2
"""How often hints, the file and the parent are looked at."""
RETRY_S = 60.0
"""A refused version is tried again after this time, or at a hint."""


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A version to serve; `refused` says which one was not taken up, and why."""

    path: str
    name: str | None
    version: str | None
    digest: str
    refused: Mapping[str, str] | None = None

    @classmethod
    def of(cls, source: Source, refused: Mapping[str, str] | None = None) -> "ServedVersion":
        """The target for an open source."""
        bundle = source.bundle
        path, digest = str(bundle.path.absolute()), bundle.manifest.digest
        return cls(path, source.name, source.version, digest, refused)

    def write(self, file: Path) -> None:
        """Put it in place in one step."""
        with staged_file(file) as temporary:
            temporary.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> "ServedVersion":
        """What the parent wrote last."""
        return cls(**json.loads(file.read_bytes()))


class Follower:
    """Keeps the target at the version that an alias names.

    Args:
        reference: the reference as the user gave it, under which versions are remembered.
        registered: the same, taken apart.
        source: the version that is served now.
        file: the target file.
        check: opens a source's graphs and compares them with torch's outputs.
        counters: where hints come in and failures are counted.
        poll_s: mean seconds between two looks.
    """

    def __init__(
        self,
        reference: str,
        registered: Registered,
        source: Source,
        file: Path,
        check: Callable[[Source], None],
        counters: SharedCounters,
        poll_s: float,
    ) -> None:
        self._reference = reference
        self._registered = registered
        self._source = source
        self._file = file
        self._check = check
        self._counters = counters
        self._poll_s = poll_s
        self._client: Any = None
        self._refused: str | None = None
        self._retry_at = 0.0
        self._reachable = True

    def run(self) -> None:
        """Look again and again; ends with the process."""
        # on the cores of the workers, so last in turn
        with contextlib.suppress(OSError):  # a thread has a priority of its own on Linux only
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while True:
            hints = self._counters.get("hints")
            self.look()
            self._wait(hints)

    def look(self) -> None:
        """Look once where the alias points, and take up what is new."""
        try:
            version = self._resolve()
        except Exception as err:  # noqa: BLE001 - whatever it is, the version goes on
            self._unreachable(err)
            return
        try:
            if version is None or version == self._source.version:
                self._accept_current()
            elif version != self._refused or time.monotonic() >= self._retry_at:
                LOG.info("%s now names version %s", self._reference, version)
                self._take_up(version)
        except Exception as err:  # noqa: BLE001 - the same
            self._refuse(str(version), err)

    def _resolve(self) -> str | None:
        if self._client is None:
            self._client = connect()
        alias = self._registered.alias
        assert alias is not None
        with store_errors():
            version = alias_version(self._client, self._registered.name, alias)
        if not self._reachable:
            LOG.info("the registry answers again")
            self._reachable = True
        return version

    def _take_up(self, version: str) -> None:
        source = open_version(self._client, self._registered.name, version)
        self._check(source)
        self._source, self._refused = source, None
        ServedVersion.of(source).write(self._file)
        self._remember()

    def _remember(self) -> None:
        try:
            remember(self._reference, self._source)
        except (VaeError, OSError) as err:
            LOG.warning("a restart will need the registry: %s", err)

    def _accept_current(self) -> None:
        if self._refused is not None:
            self._refused = None
            ServedVersion.of(self._source).write(self._file)

    def _refuse(self, version: str, err: Exception) -> None:
        LOG.error("version %s is refused, %s goes on: %s", version, self._source.version, err)
        self._counters.add("reload_failures")
        self._refused, self._retry_at = version, time.monotonic() + RETRY_S
        refused = {"version": version, "reason": str(err)}
        ServedVersion.of(self._source, refused).write(self._file)

    def _unreachable(self, err: Exception) -> None:
        self._counters.add("registry_failures")
        if self._reachable:
            LOG.warning("version %s goes on: %s", self._source.version, err)
        self._reachable = False

    def _wait(self, hints: float) -> None:
        """Wait for the next look: the interval, a little more or less, or one hint more."""
        until = time.monotonic() + self._poll_s * random.uniform(0.8, 1.2)
        while time.monotonic() < until:
            time.sleep(TICK_S)
            if self._counters.get("hints") != hints:
                self._retry_at = 0.0
                return
