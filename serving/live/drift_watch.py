"""Watch the live rows of a version for drift: the sequential test, and the ELBO of recent rows.

In: the scores of live rows, with the draws and the seed of the held-out rows. Out: a `DriftStatus`.
Memory does not grow with the rows. `save` keeps the state in a file, with which a later watch of
the same version goes on. An alarm stays until another version is served, or the server starts
anew; the test goes on, and tells further columns that drift.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.conformal import LEAST_HELD_OUT
from serving.drift_test import COLUMNS, FIRST, LEVEL, DriftTest, split_scores
from serving.files import staged_file
from serving.live_status import DriftStatus, Window
from serving.p_values import read_held_out_scores

Array = NDArray[Any]

SPANS = (300, 3600, 86_400, 604_800)
"""Seconds of the spans of recent rows: five minutes, an hour, a day, a week."""
_SLOTS = 60
"""Parts of a span, of which the oldest is dropped at a time."""
_SHARES = (0.001, 0.01, 0.025, *np.linspace(0.05, 0.95, 19), 0.975, 0.99, 0.999)
"""Shares of held-out rows below the bounds of the bins of ELBO."""


def watch_drift(bundle: Bundle, level: float = LEVEL) -> "DriftWatch | str":
    """Return a watch of a version, or why there is none.

    Raises:
        VerificationFailed: the held-out scores cannot be read.
    """
    held_out = read_held_out_scores(bundle)
    if held_out is None:
        return "this version carries no scores of held-out rows: train and export it again"
    if len(held_out.scores[FIRST]) < LEAST_HELD_OUT:
        return f"drift needs {LEAST_HELD_OUT} held-out rows, got {len(held_out.scores[FIRST])}"
    schema = bundle.manifest.schema
    names = [column.name for column in schema.columns] if schema else []
    return DriftWatch(held_out.scores, names, bundle.manifest.digest, level)


class DriftWatch:
    """Compares the live rows of one version with its held-out rows.

    Args:
        held_out: scores of held-out rows: `elbo` (rows,), and `column_log_likelihood` (rows,
            columns) of mixed tables; without the latter, columns are not watched.
        columns: names of the columns.
        digest: the version, of which alone a saved state is taken up.
        level: chance of a false alarm over all time.
    """

    def __init__(
        self, held_out: Mapping[str, Array], columns: list[str], digest: str, level: float = LEVEL
    ) -> None:
        self._columns = columns if COLUMNS in held_out else []
        self._test = DriftTest(split_scores(held_out, self._columns), level)
        self._digest = digest
        elbo = held_out[FIRST]
        self._edges = np.unique(np.quantile(elbo, _SHARES))
        self._held_out = self._count(elbo) / len(elbo)
        self._spans = [_Span(seconds, len(self._held_out)) for seconds in SPANS]

    @property
    def has_alarm(self) -> bool:
        """Whether the rows have drifted."""
        return bool(self._test.alarms)

    def add(self, scores: Mapping[str, Array], now: float) -> None:
        """Compare the next rows, whose `scores` are outputs of `score`; `now` is a Unix time."""
        self._test.add(split_scores(scores, self._columns), now)
        elbo = scores[FIRST]
        counts, total = self._count(elbo), float(elbo[np.isfinite(elbo)].sum(dtype=np.float64))
        for span in self._spans:
            span.add(counts, total, now)

    def status(self, now: float) -> DriftStatus:
        """Return what is known at a Unix time."""
        largest = self._test.largest()
        alarms = self._test.alarms
        first = next(iter(alarms.values()), None)
        return DriftStatus(
            rows=self._test.rows,
            log_e_value=max(largest.values()),
            level=self._test.level,
            alarm_time=first.time if first else None,
            alarm_rows=first.rows if first else None,
            since_time=first.since_time if first else None,
            drifted=tuple(alarms),
            columns={name: value for name, value in largest.items() if name != FIRST},
            edges=tuple(self._edges.tolist()),
            held_out=tuple(self._held_out.tolist()),
            windows=tuple(span.window(now) for span in self._spans),
        )

    def save(self, file: Path) -> None:
        """Replace the file with the state, in one step."""
        state: dict[str, Any] = {f"test.{k}": value for k, value in self._test.state().items()}
        for index, span in enumerate(self._spans):
            state |= {f"span.{index}.{name}": value for name, value in span.state().items()}
        with staged_file(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, key=np.array(self._key()), **state)

    def load(self, file: Path) -> bool:
        """Go on with a saved state; False if there is none, or it is another version's or broken.

        Rows between the last `save` and the end of its process are lost to the test, which stays
        valid without them.
        """
        try:
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
                state = dict(arrays)
            if str(state.pop("key")) != self._key():
                return False
            prefixes = ["test.", *(f"span.{index}." for index in range(len(SPANS)))]
            parts = [_under(state, prefix) for prefix in prefixes]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return False
        self._test.restore(parts[0])
        for span, part in zip(self._spans, parts[1:], strict=True):
            span.restore(part)
        return True

    def _key(self) -> str:
        return f"1 {self._digest} {self._test.level!r} {self._test.names}"

    def _count(self, elbo: Array) -> Array:
        known = np.where(np.isnan(elbo), -np.inf, elbo)
        bins = np.searchsorted(self._edges, known, "right")
        return np.bincount(bins, minlength=len(self._edges) + 1)


def _under(state: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


class _Span:
    """Counts of the rows of one span of time, up to now, in `_SLOTS` parts."""

    def __init__(self, seconds: int, bins: int) -> None:
        self._seconds = seconds
        self._slots = np.full(_SLOTS, -_SLOTS, np.int64)
        """The part of all time that each place holds."""
        self._counts = np.zeros((_SLOTS, bins), np.int64)
        self._totals = np.zeros(_SLOTS)

    def add(self, counts: Array, total: float, now: float) -> None:
        """Add the rows of one moment, and the sum of their scores."""
        slot = self._slot(now)
        place = slot % _SLOTS
        if self._slots[place] != slot:
            self._slots[place], self._counts[place], self._totals[place] = slot, 0, 0
        self._counts[place] += counts
        self._totals[place] += total

    def window(self, now: float) -> Window:
        """Return the rows of the last `seconds`, to one part."""
        recent = self._slots > self._slot(now) - _SLOTS
        counts = self._counts[recent].sum(0)
        rows = int(counts.sum())
        mean = float(self._totals[recent].sum()) / rows if rows else None
        return Window(seconds=self._seconds, rows=rows, mean=mean, counts=tuple(counts.tolist()))

    def state(self) -> dict[str, Array]:
        """Return what `restore` takes."""
        return {"slots": self._slots, "counts": self._counts, "totals": self._totals}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on with a state."""
        self._slots, self._counts = state["slots"].copy(), state["counts"].copy()
        self._totals = state["totals"].copy()

    def _slot(self, now: float) -> int:
        return int(now // (self._seconds / _SLOTS))
