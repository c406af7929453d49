"""The challenger: scores the rows that the version served has scored, and keeps the sums.

In: rows and their ELBO. Out: `LiveSums` of the two versions, in a file that outlives the observer.
A challenger that cannot be used is a fault that is shown; it stops nothing.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from serving.errors import VaeError
from serving.live.scored_version import Array, ScoredVersion, open_version, why_not_comparable
from serving.live.shared_files import Challenger, read_sums_file, write_sums_file
from serving.live_status import ShadowStatus
from serving.live_sums import LiveSums

LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Shadow:
    """Compares the challenger with the version served.

    Args:
        file: names the challenger; the parent process replaces it.
        sums_file: keeps the sums, so that an observer that died is continued.
    """

    file: Path
    sums_file: Path
    _changed_ns: int = field(default=-1, init=False)
    _challenger: Challenger = field(default_factory=Challenger, init=False)
    _version: ScoredVersion | None = field(default=None, init=False)
    _served: str = field(default="", init=False)
    _fault: str | None = field(default=None, init=False)
    _sums: dict[str, LiveSums] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Continue with the sums of an observer that died."""
        self._sums = {_key(each): each for each in read_sums_file(self.sums_file)}

    def follow(self, served: ScoredVersion) -> None:
        """Open another challenger if the parent names one, and judge whether it can be compared."""
        changed = self.file.stat().st_mtime_ns if self.file.exists() else 0
        if (changed, served.digest) == (self._changed_ns, self._served):
            return
        self._changed_ns, self._served = changed, served.digest
        found = Challenger.read(self.file)
        if found.digest != self._challenger.digest:
            self._version = None
        self._challenger, self._fault = found, found.fault
        if found.digest and self._fault is None:
            self._open(found, served)
        if self._fault is not None:
            level = logging.INFO if found.digest == served.digest else logging.WARNING
            LOG.log(level, "no challenger is compared: %s", self._fault)

    def _open(self, found: Challenger, served: ScoredVersion) -> None:
        if found.digest == served.digest:
            self._fault = "it is the version served"
            return
        try:
            if self._version is None:
                self._version = open_version(Path(found.path), found.digest, check=True)
        except Exception as err:  # noqa: BLE001 - whatever fails, the server goes on
            self._fault = str(err)
            return
        self._fault = why_not_comparable(self._version.bundle, served.bundle)

    def add(self, served: ScoredVersion, x: Array, elbo: Array, now: float) -> None:
        """Score rows (rows, *x_shape) that the version served has given `elbo` (rows,)."""
        if self._version is None or self._fault is not None:
            return
        other, readable = self._version.score_beside(served, x)
        sums = self._current(served.digest).add_rows(elbo[readable], other, now)
        unread = int(np.count_nonzero(~readable))
        self._sums[_key(sums)] = replace(sums, unread=sums.unread + unread)

    def _current(self, served: str) -> LiveSums:
        empty = LiveSums(champion=served, challenger=self._challenger.digest)
        return self._sums.get(_key(empty), empty)

    def save(self) -> None:
        """Write the sums; a full disk must not end the observer."""
        if self._sums:
            try:
                write_sums_file(self.sums_file, self._sums.values())
            except VaeError as err:
                LOG.warning("%s", err)

    def status(self) -> ShadowStatus:
        """Describe the comparison of the present two versions."""
        sums, found = self._current(self._served), self._challenger
        return ShadowStatus(
            name=found.name,
            version=found.version,
            digest=found.digest,
            rows=sums.rows,
            mean_difference=sums.mean if sums.rows else None,
            difference_se=(sums.variance / sums.rows) ** 0.5 if sums.rows > 1 else None,
            fault=self._fault,
        )


def _key(sums: LiveSums) -> str:
    return f"{sums.champion}:{sums.challenger}"
