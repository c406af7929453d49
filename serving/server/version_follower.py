"""Follow the registry: name the version that the workers of a server should serve.

`VersionFollower` runs in the parent process. It asks which version the ledger or an alias names,
fetches and verifies a new one, and only then writes it to the file that the workers watch, as a
`ServedVersion`. A version that fails, or that passed no gate, is reported as refused and is never
served.
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

from serving.champion import Follow, Named, Refusal, named_version, open_named
from serving.errors import VaeError
from serving.files import staged_file
from serving.mlflow_store import connect
from serving.server.shared_counters import SharedCounters
from serving.source import Registered, Source, remember

LOG = logging.getLogger(__name__)
WATCH_INTERVAL_S = 0.2
"""Time between two checks of the file, of requests to poll, and of the parent process."""
RETRY_S = 60.0
"""A refused version is tried again after this time, or when a poll is requested."""


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A version to serve."""

    path: str
    name: str | None
    version: str | None
    digest: str
    refused: Mapping[str, str] | None = None
    """The `version` that was refused, and the `reason`."""
    decision: Mapping[str, str] | None = None
    """Why it is served: `action`, `time`, `operator`, `reasons` and `run_id` of the record; None if
    the ledger is not followed, or could not be asked yet."""

    @classmethod
    def of(
        cls,
        source: Source,
        refused: Mapping[str, str] | None = None,
        decision: Mapping[str, str] | None = None,
    ) -> "ServedVersion":
        """Name the version of an open source."""
        bundle = source.bundle
        path, digest = str(bundle.path.absolute()), bundle.manifest.digest
        return cls(path, source.name, source.version, digest, refused, decision)

    def write(self, file: Path) -> None:
        """Replace the file in one step."""
        with staged_file(file) as temporary:
            temporary.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> "ServedVersion":
        """Read what the parent wrote last."""
        return cls(**json.loads(file.read_bytes()))


@dataclass(slots=True)
class VersionFollower:
    """Keeps a server at the version that the ledger or an alias names."""

    reference: str
    """The reference as the user gave it, under which versions are remembered."""
    registered: Registered
    """The parsed reference."""
    follow: Follow
    """What names the version."""
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
    _served: Named | None = field(default=None, init=False)
    """What the registry said of the version served."""
    _refused: Refusal | None = field(default=None, init=False)
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
        """Ask once which version to serve, and switch to a new one."""
        try:
            found = self._resolve()
        except Exception as err:  # noqa: BLE001 - whatever fails, the old version is still served
            self._count_registry_failure(err)
            return
        try:
            if isinstance(found, Refusal):
                self._retry_at = 0.0
                if found != self._refused:
                    self._refuse(found)
            elif found is None or found.version == self.source.version:
                self._accept_current(found)
            elif not self._is_refused(found) or time.monotonic() >= self._retry_at:
                LOG.info("%s now names version %s", self.reference, found.version)
                self._take_up(found)
        except Exception as err:  # noqa: BLE001 - as above
            self._retry_at = time.monotonic() + RETRY_S
            self._refuse(Refusal(version=found.version if found else "", reason=str(err)))

    def _resolve(self) -> Named | Refusal | None:
        if self._client is None:
            self._client = connect()
        found = named_version(self._client, self.registered, self.follow)
        if not self._reachable:
            LOG.info("the registry can be reached again")
            self._reachable = True
        return self._compare(found) if isinstance(found, Named) else found

    def _compare(self, found: Named) -> Named | Refusal:
        """Refuse what a ledger cannot have come to since the last poll."""
        digest = self.source.bundle.manifest.digest
        if found.version == self.source.version and found.digest not in (None, digest):
            return Refusal(
                version=found.version,
                reason=f"version {found.version} names bundle {str(found.digest)[:12]} now, but "
                f"{digest[:12]} is served: register the new bundle as a version of its own",
            )
        # a ledger that was deleted begins again at 1, but later
        served = (0, 0) if self._served is None else self._served.move
        if found.move[0] < served[0] and found.move[1] < served[1]:
            return Refusal(
                version=found.version,
                reason=f"the ledger has lost the move of version {self.source.version}: run vae "
                "promote VERSION, for the version that should be served",
            )
        return found

    @property
    def _decision(self) -> Mapping[str, str] | None:
        return None if self._served is None else self._served.decision

    def _is_refused(self, found: Named) -> bool:
        return self._refused is not None and self._refused.version == found.version

    def _take_up(self, found: Named) -> None:
        source = open_named(self._client, self.registered.name, found, self.verify_key)
        self.check(source)
        ServedVersion.of(source, decision=found.decision).write(self.file)
        self.source = source
        self._settle(found)
        self._remember()

    def _settle(self, found: Named | None) -> None:
        """Note what the registry says of the version served, which is not refused."""
        if found is not None and found != self._served:
            if found.warning is not None:
                LOG.warning("%s", found.warning)
            self._served = found
        self._refused = None
        self.counters.set("version_refused", value=0)

    def _remember(self) -> None:
        try:
            remember(self.reference, self.source, self.follow)
        except (VaeError, OSError) as err:
            LOG.warning("cannot cache the version, so a restart will need the registry: %s", err)

    def _accept_current(self, found: Named | None) -> None:
        before = self._refused, self._decision
        self._settle(found)
        if before != (None, self._decision):
            self._report()

    def _refuse(self, refusal: Refusal) -> None:
        said = "version %s is refused, still serving %s: %s"
        LOG.error(said, refusal.version, self.source.version, refusal.reason)
        self.counters.add("reload_failures")
        self.counters.set("version_refused", value=1)
        self._refused = refusal
        self._report()

    def _report(self) -> None:
        """Tell the workers what was refused and decided; a full disk must not end the follower."""
        refused = None
        if self._refused is not None:
            refused = {"version": self._refused.version, "reason": self._refused.reason}
        try:
            ServedVersion.of(self.source, refused, self._decision).write(self.file)
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
