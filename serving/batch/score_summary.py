"""Summarize the scores in an output folder: one pass, in bounded memory.

In: the folder of a job and its input. Out: a `ScoreSummary`. Nothing is kept while rows are scored:
a job that was resumed, or that was finished before anybody asked for a report, has the same
summary. The few rows that are shown are read again.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs, parquet

from serving.batch.held_out_comparison import good_rows
from serving.batch.output import QUARANTINE, Output
from serving.batch.result_columns import P_VALUE
from serving.batch.scorer import Scorer
from serving.batch.streaming_histogram import StreamingHistogram
from serving.io.rows import Rows
from serving.operations import By
from serving.p_values import choose_score

Array = NDArray[Any]

QUANTITIES = ("elbo", "log_likelihood", "kl")
SHOWN = 12
"""Rows that are shown from each end."""
MOST_FLAGGED = 100
"""Flagged rows that are shown."""
_CLOSE = 1e-3
"""Relative difference up to which two scores are of the same row."""


@dataclass(frozen=True, slots=True)
class Extreme:
    """A row with a very low or very high score, and where it lies in the output."""

    part: int
    position: int
    ids: Mapping[str, Any]
    elbo: float
    log_likelihood: float
    kl: float
    more: Mapping[str, float] = field(default_factory=dict)
    """The score that rows are compared by, if it is another one, and the p-value if there is one.
    """
    rank: float = math.nan
    """The score that rows are compared by; the lowest rows are the most unusual ones."""


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The distribution of the scores, the rows at its ends, and the rows that have none."""

    histograms: Mapping[str, StreamingHistogram]
    lowest: Sequence[Extreme]
    highest: Sequence[Extreme]
    reasons: Mapping[str, int]
    """Bad rows by reason."""


def summarize_scores(
    output: Output, parts: int, scorer: Scorer, by: By, flagged: int = 0
) -> ScoreSummary:
    """Read the scores of all parts, one part after the other; `flagged` rows are the lowest ones.

    p-values grow with the score that rows are compared by.
    """
    source = "kl" if by == "latent" else by
    names = tuple(dict.fromkeys((*QUANTITIES, source)))
    more = [*names[len(QUANTITIES) :], *([P_VALUE] if P_VALUE in scorer.schema.names else [])]
    histograms = {name: StreamingHistogram() for name in names}
    lowest: list[Extreme] = []
    highest: list[Extreme] = []
    for part in range(parts):
        table = _read(output, part, (*scorer.ids, *QUANTITIES, *more))
        for name, histogram in histograms.items():
            histogram.add(table[name].to_numpy())
        rank = choose_score(by, {source: table[source].to_numpy()})
        rows = _Rows(table, part, rank, more)
        lowest = rows.ends(lowest, min(flagged, MOST_FLAGGED) or SHOWN, sign=1)
        highest = rows.ends(highest, SHOWN, sign=-1)
    return ScoreSummary(
        histograms=histograms,
        lowest=lowest,
        highest=highest,
        reasons=_count_reasons(output),
    )


def fetch_x(
    extremes: Sequence[Extreme], scorer: Scorer, rows: Rows, part_rows: int
) -> list[Array | None]:
    """Read the rows from the input again; None for each that the input no longer holds."""
    found: dict[tuple[int, int], Array] = {}
    places = sorted({(row.part, row.position) for row in extremes})
    for part, group in itertools.groupby(places, key=lambda place: place[0]):
        wanted = [position for _, position in group]
        fetched = _fetch(scorer, rows, range(part * part_rows, (part + 1) * part_rows), wanted)
        for position, x in zip(wanted, fetched, strict=False):
            found[part, position] = x
    return [_confirm(row, found.get((row.part, row.position)), scorer) for row in extremes]


def _confirm(row: Extreme, x: Array | None, scorer: Scorer) -> Array | None:
    """Return `x` if it still has the score of the row, otherwise None."""
    if x is None:
        return None
    made = scorer.provenance
    elbo = float(scorer.engine.score(x[None], made.num_samples, made.seed)["elbo"][0])
    return x if abs(elbo - row.elbo) <= _CLOSE * max(1, abs(row.elbo)) else None


def _read(output: Output, part: int, columns: Sequence[str]) -> pa.Table:
    with output.part(part).open() as stream:
        return parquet.read_table(stream, columns=list(columns))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a part, and the score that they are compared by."""

    table: pa.Table
    part: int
    rank: Array
    more: Sequence[str]

    def ends(self, before: Sequence[Extreme], most: int, *, sign: int) -> list[Extreme]:
        """Return the rows with the lowest `sign * rank` so far; of equal rows the first ones."""
        positions = np.argsort(sign * self.rank, kind="stable")[:most]
        chosen = zip(positions.tolist(), self.table.take(positions).to_pylist(), strict=True)
        found = [self._show(place, values) for place, values in chosen]
        return sorted([*before, *found], key=lambda row: sign * row.rank)[:most]

    def _show(self, place: int, values: dict[str, Any]) -> Extreme:
        elbo, log_likelihood, kl = (float(values.pop(name)) for name in QUANTITIES)
        more = {name: float(values.pop(name)) for name in self.more}
        rank = float(self.rank[place])
        return Extreme(self.part, place, values, elbo, log_likelihood, kl, more, rank)


def _fetch(scorer: Scorer, rows: Rows, part: range, positions: Sequence[int]) -> Iterator[Array]:
    """Yield the good rows of a part of the input at these positions, which increase."""
    first = 0
    for x in good_rows(scorer, rows, part.start, part.stop):
        yield from x[[place - first for place in positions if first <= place < first + len(x)]]
        first += len(x)
        if first > positions[-1]:
            return


def _count_reasons(output: Output) -> Mapping[str, int]:
    place = output.place / QUARANTINE
    selector = fs.FileSelector(place.path, allow_not_found=True)
    counts: Counter[str] = Counter()
    for info in place.system.get_file_info(selector):
        if info.base_name.startswith("part-"):
            with place.system.open_input_file(info.path) as stream:
                counts.update(parquet.read_table(stream, columns=["reason"])["reason"].to_pylist())
    return dict(counts.most_common())
