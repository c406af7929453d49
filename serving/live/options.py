"""What the parent process of a server hands to the observer.

These modules import neither onnxruntime nor pyarrow, which the parent would keep for good: this
one, `shared_files`, `challenger` and `observing`.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.errors import UsageRefused
from serving.files import refuse_in_bundle
from serving.live_status import DriftStatus

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOptions:
    """Where to keep rows, and how many."""

    folder: Path
    keep_bytes: int
    """Bytes of the folder's parts from which the oldest are removed."""
    keep_s: float
    """Age at which a part is removed."""
    left_out: frozenset[str] = frozenset()
    """Columns of a table that are not kept."""
    hashed: Mapping[str, bytes] = field(default_factory=dict)
    """Columns of a table of which a keyed hash is kept, with the key."""
    part_bytes: int = 16 * 2**20
    """Bytes of rows in memory from which a part is written."""
    part_s: float = 60.0
    """Age of the first row at which a part is written."""


class Drift(Protocol):
    """A test of live rows against those held out."""

    def add(self, scores: Mapping[str, Array], now: float) -> None:
        """Compare rows, given by the outputs of `score`, (rows, ...)."""

    def status(self, now: float) -> DriftStatus:
        """Return what was found so far."""


class OpenDrift(Protocol):
    """Begins the test for a version; returns None if it has no held-out rows to compare with."""

    def __call__(self, bundle: Bundle) -> Drift | None:
        """Begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserverOptions:
    """What the parent process hands to the observer."""

    version_file: Path
    """Names the version served."""
    status_file: Path
    """What the observer has seen; workers read it."""
    challenger_file: Path | None = None
    """Names the challenger, if rows are compared."""
    sums_file: Path | None = None
    """Keeps the sums of the comparison."""
    capture: CaptureOptions | None = None
    open_drift: OpenDrift | None = None


def check_capture(folder: Path) -> None:
    """Refuse a folder that cannot be written to, or in a bundle, before the server starts.

    Raises:
        UsageRefused: say why.
    """
    probe = folder / f".captured-{secrets.token_hex(4)}"
    refuse_in_bundle(probe, "--capture")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as err:
        raise UsageRefused(f"--capture {folder}: {err.strerror or err}") from err
