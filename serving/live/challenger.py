"""Follow the challenger in the registry, and write the sums of its comparison there.

Runs in a thread of the parent process, which has the client of the registry. In: a reference to a
version. Out: a file that names it for the observer, and a tag of that version with what this server
has seen of it. A challenger that is missing is a fault that is shown; it stops nothing.
"""

import hashlib
import logging
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import UsageRefused, VaeError
from serving.live.shared_files import Challenger, read_sums_file
from serving.live_sums import LiveSums, merge_sums
from serving.mlflow_store import alias_version, connect, registered_version, store_errors
from serving.source import Registered, Source, open_source, open_version, parse_reference

LOG = logging.getLogger(__name__)
REPORT_S = 10.0
"""Time between two reports to the registry."""
RETRY_S = 60.0
"""Time between two attempts to open a version that cannot be opened."""


@dataclass(slots=True)
class ChallengerFollower:
    """Names the challenger for the observer, and reports its sums.

    Args:
        reference: a bundle folder, models:/NAME/VERSION or models:/NAME@ALIAS.
        file: names the challenger.
        sums_file: what the observer has summed up.
        server: identifies this server among those that report.
        poll_s: mean seconds between two looks at the registry.
        verify_key: file of the public key that the challenger must be signed with, if there is one.
    """

    reference: str
    file: Path
    sums_file: Path
    server: str
    poll_s: float
    verify_key: Path | None = None
    _registered: Registered | None = field(default=None, init=False)
    _client: Any = field(default=None, init=False)
    _named: Challenger = field(default_factory=Challenger, init=False)
    _versions: dict[str, tuple[str, str]] = field(default_factory=dict, init=False)
    _earlier: dict[str, LiveSums] = field(default_factory=dict, init=False)
    _reported: dict[str, LiveSums] = field(default_factory=dict, init=False)
    _refused: str | None = field(default="", init=False)
    _retry_at: float = field(default=0.0, init=False)
    _unreported: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Parse the reference.

        Raises:
            UsageRefused: it is none.
        """
        self._registered = parse_reference(self.reference)

    def run(self, stopping: threading.Event) -> None:
        """Poll and report until the server stops."""
        poll_at = report_at = 0.0
        while not stopping.is_set():
            now = time.monotonic()
            if now >= poll_at:
                self.poll()
                poll_at = now + self.poll_s * random.uniform(0.8, 1.2)
            if now >= report_at:
                self.report()
                report_at = now + REPORT_S
            stopping.wait(min(poll_at, report_at) - time.monotonic())

    def poll(self) -> None:
        """Ask once which version the reference names, and name a new one to the observer."""
        try:
            number = self._resolve()
        except Exception as err:  # noqa: BLE001 - whatever fails, the server goes on
            self._lack(str(err))
            return
        if self._named.digest and number == self._named.version:
            return
        if number == self._refused and time.monotonic() < self._retry_at:
            return
        try:
            self._name(_describe(self._open(number)))
        except Exception as err:  # noqa: BLE001 - as above
            self._refused, self._retry_at = number, time.monotonic() + RETRY_S
            self._lack(str(err))

    def _lack(self, fault: str) -> None:
        """Say why there is no challenger; one that was found before is compared all the same."""
        if not self._named.digest:
            self._name(Challenger(fault=fault))

    def _resolve(self) -> str | None:
        registered = self._registered
        if registered is None:
            return None
        if self._client is None:
            self._client = connect()
        if registered.alias is None:
            return registered.version
        with store_errors():
            version = alias_version(self._client, registered.name, registered.alias)
        if version is None:
            raise UsageRefused(f"{registered.name} has no {registered.alias}")
        return version

    def _open(self, number: str | None) -> Source:
        if self._registered is None or number is None:
            return open_source(self.reference, self.verify_key)
        return open_version(self._client, self._registered.name, number, self.verify_key)

    def _name(self, challenger: Challenger) -> None:
        if challenger == self._named:
            return
        if challenger.fault:
            LOG.warning("no challenger %s: %s", self.reference, challenger.fault)
        else:
            LOG.info("comparing live rows with %s", challenger.version or challenger.path)
        try:
            challenger.write(self.file)
        except VaeError as err:
            LOG.warning("%s", err)
            return
        self._named = challenger
        if challenger.name and challenger.version:
            self._versions[challenger.digest] = challenger.name, challenger.version

    def report(self) -> None:
        """Write the sums that have changed into tags of the versions that they are about."""
        try:
            for sums in read_sums_file(self.sums_file):
                if sums.challenger in self._versions and sums != self._reported.get(_key(sums)):
                    self._write(sums, *self._versions[sums.challenger])
                    self._reported[_key(sums)] = sums
            self._unreported = ""
        except Exception as err:  # noqa: BLE001 - said once, and tried again with the next report
            if str(err) != self._unreported:
                LOG.warning("cannot report live rows to the registry: %s", err)
            self._unreported = str(err)

    def _write(self, sums: LiveSums, name: str, version: str) -> None:
        with store_errors():
            if _key(sums) not in self._earlier:
                self._earlier[_key(sums)] = self._read_earlier(sums, name, version)
            whole = self._earlier[_key(sums)].merge(sums)
            self._client.set_model_version_tag(
                name, version, whole.tag(self.server), whole.to_json()
            )

    def _read_earlier(self, sums: LiveSums, name: str, version: str) -> LiveSums:
        """Read what this server has reported before it was started again, to go on with it."""
        digest, _ = registered_version(self._client, name, version)
        if digest != sums.challenger:
            raise VaeError(f"version {version} of {name} is another than the one that was compared")
        tags = self._client.get_model_version(name, version).tags
        tag = sums.tag(self.server)
        own = {tag: tags[tag]} if tag in tags else {}
        return merge_sums(sums.champion, sums.challenger, own)


def server_id(host: str, port: int) -> str:
    """Return a name for a server that is the same when it is started again."""
    text = f"{socket.gethostname()} {host} {port}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _describe(source: Source) -> Challenger:
    bundle = source.bundle
    return Challenger(
        path=str(bundle.path.absolute()),
        name=source.name,
        version=source.version,
        digest=bundle.manifest.digest,
    )


def _key(sums: LiveSums) -> str:
    return f"{sums.champion}:{sums.challenger}"
