"""Tell day by day whether rows are still like a version's held-out rows.

In: times and scores of rows. Out: a `Monitored`: each day beside the held-out rows, and what the
sequential test over all rows says at its end. Memory grows with the number of days alone, by 4 KB
for each.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serving.batch.monitored_rows import TimedScores
from serving.drift import Drift, DriftCounter, HeldOut
from serving.drift_test import FIRST, LEVEL, Alarm, DriftTest, split_scores
from serving.io.svg_plots import bin_edges, bulk_range

Array = NDArray[Any]
By = Literal["day", "hour"]

SECONDS: Mapping[By, int] = {"day": 86_400, "hour": 3600}
BINS = 48
_SHARES = (0.001, 0.02, 0.98, 0.999)
_WORDS: Mapping[By, str] = {"day": "%Y-%m-%d", "hour": "%Y-%m-%d %H:00"}


@dataclass(frozen=True, slots=True)
class Period:
    """The rows of a day or an hour."""

    start: float
    """Unix time of its start, in UTC."""
    name: str
    drift: Drift
    """Its rows against the held-out ones."""
    log_e_value: float
    """The largest of all tests at its end, each times its share of the level."""
    shares: Array
    """Its rows in each bin of ELBO, (BINS,); the outer bins are open."""
    alarms: Sequence[str]
    """What had its first alarm in it."""


@dataclass(frozen=True, slots=True)
class Monitored:
    """What was found."""

    by: By
    rows: int
    periods: Sequence[Period]
    edges: Array
    """Bounds of the bins of ELBO, (BINS + 1,)."""
    held_out: Array
    """Share of held-out rows in each, (BINS,)."""
    level: float
    largest: Mapping[str, float]
    """The largest log e-value of each score, times its share of the level."""
    alarms: Mapping[str, Alarm]
    """The first alarm of each score that has one."""
    late: int
    """Rows that came after rows of a later day."""

    @property
    def first(self) -> Alarm | None:
        """The first alarm."""
        return next(iter(self.alarms.values()), None)


@dataclass(slots=True)
class _Counts:
    """What is counted of a period."""

    counter: DriftCounter
    histogram: Array
    rows: int = 0
    mean: float = 0.0
    squares: float = 0.0
    log_e_value: float = -math.inf
    alarms: list[str] = field(default_factory=list)

    def add(self, elbo: Array, edges: Array) -> None:
        """Add rows; squares are about the mean, without cancellation (Chan et al., 1983)."""
        self.counter.add(elbo)
        bins = np.searchsorted(edges[1:-1], elbo, "right")
        self.histogram += np.bincount(bins, minlength=BINS)
        rows, mean = len(elbo), float(elbo.mean())
        shift, total = mean - self.mean, self.rows + rows
        self.squares += float(np.square(elbo - mean).sum()) + shift**2 * self.rows * rows / total
        self.mean += shift * rows / total
        self.rows = total


class Monitor:
    """Follows rows through time.

    Args:
        held_out: the distribution of the ELBO of held-out rows.
        scores: the scores of held-out rows.
        columns: columns of the table that are tested too.
        by: what to report by.
        level: chance of a false alarm over all rows.
    """

    def __init__(
        self,
        held_out: HeldOut,
        scores: Mapping[str, Array],
        columns: Sequence[str] = (),
        by: By = "day",
        level: float = LEVEL,
    ) -> None:
        self._held_out, self._columns, self._by = held_out, columns, by
        self._test = DriftTest(split_scores(scores, columns), level)
        self._edges = _lay_out_bins(held_out)
        self._periods: dict[int, _Counts] = {}
        self._late = 0

    def add(self, batch: TimedScores) -> None:
        """Follow the next rows, which are in the order of time among themselves."""
        numbers = (batch.times // SECONDS[self._by]).astype(np.int64)
        ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        start = 0
        for end in ends if len(numbers) else ():
            number = int(numbers[start])
            if self._periods and number < max(self._periods):
                self._late += end - start
            counts = self._periods.get(number)
            if counts is None:
                counts = _Counts(DriftCounter(self._held_out), np.zeros(BINS, np.int64))
                self._periods[number] = counts
            scores = {name: values[start:end] for name, values in batch.scores.items()}
            before = set(self._test.alarms)
            self._test.add(split_scores(scores, self._columns), batch.times[start:end])
            counts.alarms += [name for name in self._test.alarms if name not in before]
            counts.log_e_value = max(self._test.log_e_values().values())
            counts.add(scores[FIRST].astype(np.float64), self._edges)
            start = end

    def result(self) -> Monitored:
        """Return what was found so far."""
        held = self._held_out.cdf(self._edges)[1:-1]
        return Monitored(
            by=self._by,
            rows=self._test.rows,
            periods=[self._describe(number) for number in sorted(self._periods)],
            edges=self._edges,
            held_out=np.diff(np.concatenate([[0.0], held, [1.0]])),
            level=self._test.level,
            largest=self._test.largest(),
            alarms=dict(self._test.alarms),
            late=self._late,
        )

    def _describe(self, number: int) -> Period:
        counts, start = self._periods[number], float(number * SECONDS[self._by])
        sd = math.sqrt(counts.squares / counts.rows)
        return Period(
            start=start,
            name=datetime.fromtimestamp(start, UTC).strftime(_WORDS[self._by]),
            drift=counts.counter.drift(counts.rows, counts.mean, sd),
            log_e_value=counts.log_e_value,
            shares=counts.histogram / counts.rows,
            alarms=counts.alarms,
        )


def monitor_all(monitor: Monitor, batches: Iterable[TimedScores]) -> Monitored:
    """Follow all rows of an input."""
    for batch in batches:
        monitor.add(batch)
    return monitor.result()


def show_time(time_s: float) -> str:
    """Return a Unix time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _lay_out_bins(held_out: HeldOut) -> Array:
    """Return edges of bins around the bulk of held-out rows, with room for rows below them."""
    low, high = bulk_range(*np.quantile(held_out.elbo_quantiles, _SHARES).tolist())
    return bin_edges(low - (high - low) / 3, high, BINS)
