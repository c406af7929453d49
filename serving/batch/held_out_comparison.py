"""Compare the rows of a job with the held-out rows: score some again, as those were scored.

The scores of a job have its number of draws, which moves the whole distribution, although no row
has changed. In: a job's input and the held-out distribution. Out: the drift, and the distribution
of the new scores.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.batch.job import BATCH_BYTES, BATCH_ROWS
from serving.batch.scorer import Scorer
from serving.batch.streaming_histogram import StreamingHistogram
from serving.drift import Drift, DriftCounter, HeldOut
from serving.io.columns import read_x
from serving.io.rows import Rows

Array = NDArray[Any]

COMPARED_ROWS = 10_000
"""About how many rows are scored again; held-out rows are rarely more."""
_READ_PARTS = 16
"""From how many parts of a large input they are taken."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The new scores beside the held-out ones."""

    held_out: HeldOut
    drift: Drift
    elbo: StreamingHistogram


def compare_rows(
    scorer: Scorer, rows: Rows, held_out: HeldOut, *, scored: int, part_rows: int
) -> Comparison | None:
    """Score about `COMPARED_ROWS` of the `scored` rows again; None if there are none."""
    counter, histogram = DriftCounter(held_out), StreamingHistogram()
    for x in _sample_rows(scorer, rows, scored, part_rows):
        elbo = scorer.engine.score(x, held_out.num_samples, held_out.seed)["elbo"]
        elbo = elbo[np.isfinite(elbo)]
        counter.add(elbo)
        histogram.add(elbo)
    if not histogram.rows:
        return None
    drift = counter.drift(histogram.rows, histogram.mean, histogram.sd)
    return Comparison(held_out, drift, histogram)


def good_rows(scorer: Scorer, rows: Rows, start: int, stop: int) -> Iterator[Array]:
    """Yield those rows of the input from `start` to `stop` that pass the filter and can be used."""
    batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES // scorer.layout.row_bytes))
    for batch in rows.read(start, stop, scorer.x, batch_rows):
        yield read_x(rows.keep(batch), scorer.x, scorer.layout)[0]


def _sample_rows(scorer: Scorer, rows: Rows, scored: int, part_rows: int) -> Iterator[Array]:
    """Yield every n-th good row of parts that lie evenly in the input."""
    parts = -(-rows.total // part_rows)
    read = np.unique(np.linspace(0, parts - 1, min(parts, _READ_PARTS)).round().astype(int))
    step = max(1, round(scored * len(read) / parts / COMPARED_ROWS))
    seen = 0
    for part in read.tolist():
        for x in good_rows(scorer, rows, part * part_rows, (part + 1) * part_rows):
            yield x[-seen % step :: step]
            seen += len(x)
