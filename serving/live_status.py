"""What the observer of a server has seen of its live rows, as one file that all workers read.

The observer is a process beside the workers. They hand it a share of the rows that they answer; it
scores and keeps them, and writes a `LiveStatus` every second. Workers show it in `/metrics`, in
readiness and on the page.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serving.files import staged_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The ELBO of the rows of one span of time, up to now."""

    seconds: int
    """Length of the span."""
    rows: int
    mean: float | None
    """Mean ELBO in nats; None without a row."""
    counts: tuple[int, ...]
    """Rows in each bin between the `edges` of the drift; one more than there are edges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftStatus:
    """The live rows against the version's held-out rows."""

    rows: int
    """Live rows compared so far, since this version is served."""
    log_e_value: float
    """Natural logarithm of the largest e-value so far, over all tests, each times its share of the
    level: an alarm begins when it reaches ln(1 / level)."""
    level: float
    """Chance of a false alarm, over the whole time that a version is served."""
    alarm_time: float | None = None
    """When the e-value first exceeded 1 / level, as a Unix time."""
    alarm_rows: int | None = None
    """Rows compared until then."""
    since_time: float | None = None
    """When the rows came that the alarm is about, as far as can be told, as a Unix time."""
    drifted: tuple[str, ...] = ()
    """What has an alarm: `elbo` for whole rows, and names of columns; the earliest first."""
    columns: Mapping[str, float] = field(default_factory=dict)
    """Largest log e-value of each column of a mixed table, like `log_e_value`."""
    edges: tuple[float, ...] = ()
    """Bounds of the bins of ELBO in nats: quantiles of the held-out rows."""
    held_out: tuple[float, ...] = ()
    """Share of held-out rows in each bin."""
    windows: tuple[Window, ...] = ()
    """Spans from minutes to days, the shortest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowStatus:
    """A challenger that scores live rows too, with the same noise, and never answers."""

    name: str | None
    version: str | None
    digest: str
    rows: int
    """Rows that both versions have scored."""
    mean_difference: float | None = None
    """Mean ELBO of the challenger minus that of the version served, in nats, paired over rows."""
    difference_se: float | None = None
    fault: str | None = None
    """Why it does not score at the moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureStatus:
    """Live rows and their answers that were kept."""

    folder: str
    parts: int
    rows: int
    bytes: int
    """Parts, their rows and their size, as far as they are in the folder now."""
    fault: str | None = None
    """Why nothing is kept at the moment, such as a full disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveStatus:
    """All that the observer knows; a part that is switched off is None."""

    time: float
    """When it was written, as a Unix time."""
    digest: str
    """The version served that it is about."""
    rows: int
    """Rows that the observer has received."""
    dropped_rows: int
    """Rows that it received and could not use, such as those of a version that was replaced since;
    workers count apart what did not reach it."""
    drift: DriftStatus | None = None
    shadow: ShadowStatus | None = None
    capture: CaptureStatus | None = None

    @property
    def shadow_fault(self) -> str | None:
        """Why the challenger does not score, where that needs a person.

        After a promotion the challenger is the version served, until there is another candidate.
        """
        shadow = self.shadow
        return None if shadow is None or shadow.digest == self.digest else shadow.fault

    def write(self, file: Path) -> None:
        """Replace the file in one step."""
        with staged_file(file) as temporary:
            temporary.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> "LiveStatus | None":
        """Read what the observer wrote last; None before it has written."""
        try:
            content: dict[str, Any] = json.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        drift, shadow, capture = (content.pop(name) for name in ("drift", "shadow", "capture"))
        if drift is not None:
            windows = tuple(
                Window(**{**each, "counts": tuple(each["counts"])}) for each in drift["windows"]
            )
            listed = {name: tuple(drift[name]) for name in ("drifted", "edges", "held_out")}
            drift = DriftStatus(**{**drift, **listed, "windows": windows})
        return cls(
            **content,
            drift=drift,
            shadow=None if shadow is None else ShadowStatus(**shadow),
            capture=None if capture is None else CaptureStatus(**capture),
        )
