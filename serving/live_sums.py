"""Two versions on the same live rows, as sums that can be added: over time, workers and servers.

Each server keeps the sums of its own rows in one tag of the challenger's version, for each champion
that it has served beside it. A tag is replaced as a whole, and no other server writes it, so that
nothing has to be locked and nothing is counted twice.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIVE_TAG = "live."
"""Begins the names of the tags; the server and the digest of the champion follow."""
_DIGITS = 12
_LARGEST = 1e100
"""Beyond any sum of squares of float32, and so small that its own square is a float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSums:
    """Sums over rows of a paired difference: the challenger's ELBO minus the champion's."""

    champion: str
    challenger: str
    """Digests."""
    rows: int = 0
    """Rows that both have scored."""
    total: float = 0.0
    """Sum of the differences, in nats."""
    squares: float = 0.0
    """Sum of their squares."""
    not_finite: int = 0
    """Rows on which the challenger's ELBO is not finite, but the champion's is."""
    unread: int = 0
    """Rows of a mixed table that the challenger's schema cannot take."""
    since: float = 0.0
    until: float = 0.0
    """When the first and the last row was answered, as Unix times; 0 without a row."""

    def add_rows(self, champion: NDArray[Any], challenger: NDArray[Any], now: float) -> "LiveSums":
        """Add the ELBOs (rows,) of both; rows that the champion cannot score do not count."""
        with np.errstate(invalid="ignore"):  # inf - inf is NaN
            difference = challenger.astype(np.float64) - champion.astype(np.float64)
        compared = np.isfinite(champion)
        good = difference[np.isfinite(difference)]
        bad = int(np.count_nonzero(compared)) - len(good)
        return self.merge(
            replace(
                self,
                rows=len(good) + bad,
                total=float(good.sum()),
                squares=float(np.square(good).sum()),
                not_finite=bad,
                unread=0,
                since=now,
                until=now,
            )
        )

    def merge(self, other: "LiveSums") -> "LiveSums":
        """Add the sums of other rows under the same two versions."""
        started = [each.since for each in (self, other) if each.since]
        return LiveSums(
            champion=self.champion,
            challenger=self.challenger,
            rows=self.rows + other.rows,
            total=self.total + other.total,
            squares=self.squares + other.squares,
            not_finite=self.not_finite + other.not_finite,
            unread=self.unread + other.unread,
            since=min(started, default=0.0),
            until=max(self.until, other.until),
        )

    @property
    def mean(self) -> float:
        """The mean difference in nats; NaN without a row."""
        return self.total / self.rows if self.rows else math.nan

    @property
    def variance(self) -> float:
        """The variance of the differences, with rows - 1 in the denominator; NaN below 2 rows."""
        if self.rows < 2:
            return math.nan
        return max(0.0, self.squares - self.rows * self.mean**2) / (self.rows - 1)

    def tag(self, server: str) -> str:
        """Return the name of the tag in which a server keeps these sums."""
        return f"{LIVE_TAG}{server}.{self.champion[:_DIGITS]}"

    def to_json(self) -> str:
        """Return the content of the tag."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LiveSums":
        """Read the content of a tag.

        Raises:
            ValueError: it is none, which anybody may have written.
        """
        try:
            content = json.loads(text)
        except RecursionError as err:
            raise ValueError("live sums are not nested") from err
        wanted = {item.name: item.type for item in fields(cls)}
        kinds: dict[object, Any] = {str: str, int: int, float: (int, float)}
        if not isinstance(content, dict) or content.keys() != wanted.keys():
            raise ValueError(f"live sums have {', '.join(wanted)}")
        for name, value in content.items():
            kind = kinds[wanted[name]]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name} of live sums is {value!r}")
            if kind is not str and not abs(value) <= _LARGEST:
                raise ValueError(f"{name} of live sums is no number that sums can have")
        counts = [content[name] for name in ("not_finite", "rows", "unread")]
        if min(counts) < 0 or content["not_finite"] > content["rows"] or content["squares"] < 0:
            raise ValueError("live sums of fewer rows than none")
        return cls(**content)


def read_sums(tags: Mapping[str, str]) -> Iterable[LiveSums]:
    """Yield the sums that servers have written into the tags of a version."""
    for name, text in sorted(tags.items()):
        if name.startswith(LIVE_TAG):
            try:
                yield LiveSums.from_json(text)
            except ValueError:
                continue


def merge_sums(champion: str, challenger: str, tags: Mapping[str, str]) -> LiveSums:
    """Add up what all servers have seen of two versions, given by their digests."""
    merged = LiveSums(champion=champion, challenger=challenger)
    for sums in read_sums(tags):
        if (sums.champion, sums.challenger) == (champion, challenger):
            merged = merged.merge(sums)
    return merged
