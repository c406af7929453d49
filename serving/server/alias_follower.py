"""Follow an alias of the registry: name the version that the workers of a server should serve.

`AliasFollower` runs in the parent process. It asks which version the alias names, fetches and
verifies a new one, and only then writes it to the file that the workers watch, as a
`ServedVersion`. A version that fails is reported as refused and is never served.
"""

import contextlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import VaeError
from serving.files import staged_file
from serving.mlflow_store import alias_version, connect, store_errors
from serving.server.shared_counters import SharedCounters
from serving.source import Registered, Source, open_version, remember

LOG = logging.getLogger(__name__)
WATCH_INTERVAL_S = 0.2
"""Time between two checks of the file, of requests to poll, and of the parent process."""
RETRY_S = 60.0
"""A refused version is tried again after this time, or when a poll is requested."""


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A version to serve; `refused` holds the `version` that was refused, and the `reason`."""

    path: str
    name: str | None
    version: str | None
    digest: str
    refused: Mapping[str, str] | None = None

    @classmethod
    def of(cls, source: Source, refused: Mapping[str, str] | None = None) -> "ServedVersion":
        """Name the version of an open source."""
        bundle = source.bundle
        path, digest = str(bundle.path.absolute()), bundle.manifest.digest
        return cls(path, source.name, source.version, digest, refused)

    def write(self, file: Path) -> None:
        """Replace the file in one step."""
        with staged_file(file) as temporary:
            temporary.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> "ServedVersion":
        """Read what the parent wrote last."""
        return cls(**json.loads(file.read_bytes()))


@dataclass(slots=True)
class AliasFollower:
    """Keeps a server at the version that an alias names."""

    reference: str
    """The reference as the user gave it, under which versions are remembered."""
    registered: Registered
    """The parsed reference."""
    source: Source
    """The version that is served now."""
    file: Path
    """Where to write the version to serve."""
    check: Callable[[Source], None]
    """Opens a source's graphs and compares their outputs with torch's."""
    counters: SharedCounters
    """Holds the requests to poll, and counts failures."""
    poll_s: float
    """Mean seconds between two polls."""
    verify_key: Path | None = None
    """File of the public key that a version must be signed with."""
    _client: Any = field(default=None, init=False)
    _refused: str | None = field(default=None, init=False)
    _retry_at: float = field(default=0.0, init=False)
    _reachable: bool = field(default=True, init=False)

    def run(self) -> None:
        """Poll until the process ends."""
        # a low priority, since it shares the workers' cores; only Linux has one for each thread
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while True:
            requests = self.counters.get("poll_requests")
            self.poll()
            self._wait(requests)

    def poll(self) -> None:
        """Ask once which version the alias names, and switch to a new one."""
        try:
            version = self._resolve()
        except Exception as err:  # noqa: BLE001 - whatever fails, the old version is still served
            self._count_registry_failure(err)
            return
        try:
            if version is None or version == self.source.version:
                self._accept_current()
            elif version != self._refused or time.monotonic() >= self._retry_at:
                LOG.info("%s now names version %s", self.reference, version)
                self._take_up(version)
        except Exception as err:  # noqa: BLE001 - as above
            self._refuse(str(version), err)

    def _resolve(self) -> str | None:
        if self._client is None:
            self._client = connect()
        alias = self.registered.alias
        assert alias is not None
        with store_errors():
            version = alias_version(self._client, self.registered.name, alias)
        if not self._reachable:
            LOG.info("the registry can be reached again")
            self._reachable = True
        return version

    def _take_up(self, version: str) -> None:
        source = open_version(self._client, self.registered.name, version, self.verify_key)
        self.check(source)
        ServedVersion.of(source).write(self.file)
        self.source, self._refused = source, None
        self._remember()

    def _remember(self) -> None:
        try:
            remember(self.reference, self.source)
        except (VaeError, OSError) as err:
            LOG.warning("cannot cache the version, so a restart will need the registry: %s", err)

    def _accept_current(self) -> None:
        if self._refused is not None:
            self._refused = None
            self._report(None)

    def _refuse(self, version: str, err: Exception) -> None:
        LOG.error("version %s is refused, still serving %s: %s", version, self.source.version, err)
        self.counters.add("reload_failures")
        self._refused, self._retry_at = version, time.monotonic() + RETRY_S
        self._report({"version": version, "reason": str(err)})

    def _report(self, refused: Mapping[str, str] | None) -> None:
        """Tell the workers which version was refused; a full disk must not end the follower."""
        try:
            ServedVersion.of(self.source, refused).write(self.file)
        except VaeError as err:
            LOG.warning("%s", err)

    def _count_registry_failure(self, err: Exception) -> None:
        self.counters.add("registry_failures")
        if self._reachable:
            LOG.warning("still serving version %s: %s", self.source.version, err)
        self._reachable = False

    def _wait(self, requests: float) -> None:
        """Wait for the interval, randomly 20 % longer or shorter, or until a poll is requested."""
        until = time.monotonic() + self.poll_s * random.uniform(0.8, 1.2)
        while time.monotonic() < until:
            time.sleep(WATCH_INTERVAL_S)
            if self.counters.get("poll_requests") != requests:
                self._retry_at = 0.0
                return
