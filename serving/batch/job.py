"""Score the rows of files into a folder of Parquet parts, in bounded memory.

Part `i` holds the results of the rows of the input from `i * PART_ROWS` on, so that the parts do
not depend on which process makes them or when: an interrupted job keeps its parts and makes the
others. One thread reads and writes; others run graphs over one set of sessions, each with one
thread. Compared with one onnxruntime pool of two threads, that took 13 % less CPU time. Processes
gain nothing over threads, because a session runs without the interpreter's lock (`make bench`
prints both).

In: rows, a scorer, an output folder. Out: a `Summary`. Raises `DataRefused` for bad rows,
`VaeError` if a part cannot be written.
"""

import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol

import pyarrow as pa

from serving.batch.output import Counts, Output
from serving.batch.scorer import Provenance
from serving.engine import Engine
from serving.errors import DataRefused, UsageRefused
from serving.io.column_choice import RowLayout
from serving.io.filesystems import locate
from serving.io.rows import Rows
from serving.p_values import Flags

PART_ROWS = 65_536
BATCH_ROWS = 4096
BATCH_BYTES = 16 << 20
"""Most bytes of `x` in a batch; if rows are wide, fewer are read at once."""
OnError = Literal["fail", "quarantine"]
_NONE = Counts()
_SHOWN = 8
"""Columns of a bad row in a message."""
Item = tuple[int, pa.RecordBatch | None]
"""The index of a part and some of its rows; None marks its end."""


class Input(Protocol):
    """Rows by number: those of files, or those to be sampled."""

    @property
    def total(self) -> int:
        """Number of rows."""

    def read(
        self, start: int, stop: int, columns: Sequence[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of those rows from `start` to `stop` that exist."""

    def keep(self, batch: pa.RecordBatch, /) -> pa.RecordBatch:
        """Return the rows of a batch that pass the filter."""


class Mapper(Protocol):
    """Maps a batch to results, each of which depends on its row alone, and to bad rows."""

    schema: pa.Schema
    provenance: Provenance
    layout: RowLayout
    x: tuple[str, ...]
    copies: int
    """Number of results of each row."""

    def __call__(self, batch: pa.RecordBatch, /) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return results, and bad rows, whose last column is the reason."""


class FileMapper(Mapper, Protocol):
    """Maps the rows of files."""

    engine: Engine
    operation: str
    ids: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Return what else the results depend on, in the types of JSON."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How many rows may be bad: a number, or a share."""

    rows: int | None = None
    share: Fraction = Fraction(0)
    """Exact, so that 0.12 % of 2,500 rows are three."""

    def allows(self, bad: int, rows: int) -> bool:
        """Whether `bad` of `rows` are few enough."""
        return bad <= (self.share * rows if self.rows is None else self.rows)


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a job: rows written, rows set aside, and the rate of its last run."""

    rows: int
    bad: int
    parts: int
    seconds: float
    rows_per_s: float
    flags: Flags | None = None
    """What a false discovery rate flagged, if one was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields in the types of JSON; what was flagged stands among them."""
        content = asdict(self)
        del content["flags"]
        if self.flags is not None:
            content |= {"flagged": self.flags.flagged, "threshold": self.flags.threshold}
        return content


def parse_limit(text: str) -> Limit:
    """Read `100` or `5%`."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text.strip())
    if match is None or Fraction(match[2] or 0) > 100:
        raise UsageRefused(f"--max-bad must be a number of rows or a share like 5%, got {text!r}")
    return Limit(int(match[1])) if match[1] else Limit(share=Fraction(match[2]) / 100)


def describe_job(scorer: FileMapper, rows: Rows, fdr: float | None = None) -> dict[str, Any]:
    """Describe all that the output depends on, in the types of JSON; `fdr` flags rows."""
    return {
        "format": 1,
        "input": str(locate(rows.input_path)),
        "files": [
            {"name": file.name, "bytes": file.size, "mtime_ns": file.mtime_ns, "rows": file.rows}
            for file in rows.files
        ],
        "operation": scorer.operation,
        **asdict(scorer.provenance),
        "device": scorer.engine.device,
        "x": list(scorer.x),
        "ids": list(scorer.ids),
        "where": rows.filter.text if rows.filter else "",
        **scorer.describe(),
        **({"fdr": fdr} if fdr else {}),
        **({"array": rows.array} if rows.array else {}),
        "part_rows": PART_ROWS,
    }


def run_job(
    scorer: Mapper,
    rows: Input,
    output: Output,
    *,
    workers: int,
    batch_rows: int = BATCH_ROWS,
    on_error: OnError = "fail",
    limit: Limit | None = None,
    advance: Callable[[int], None] = lambda rows: None,
    skip: Callable[[int], None] = lambda rows: None,
    execute: "PartExecutor | None" = None,
    flag: Callable[[int], Flags] | None = None,
) -> Summary:
    """Make the parts that are missing.

    `advance` is called with the number of rows that are done, `skip` with those of an earlier run.
    `execute` makes the parts elsewhere; without it, this process makes them. `flag` flags rows of
    all parts, whose number it gets.

    Raises:
        DataRefused: a row is bad and `on_error` is `fail`, or more are bad than `limit` allows.
        VaeError: a part cannot be written.
    """
    started = time.perf_counter()
    output.start()
    parts = -(-rows.total // PART_ROWS)
    counts, missing = Counts(), []
    for index in range(parts):
        done = output.counts(index)
        if done is None:
            missing.append(index)
        else:
            counts += done
            skip(_part_size(rows, index))
    before = counts
    job = Job(
        scorer, rows, output, batch_rows, on_error, limit or Limit(share=Fraction(1)), advance
    )
    made = execute(job, missing) if execute else job.make(missing, workers, counts)
    with closing(made):
        for part in made:
            counts += part
    job.check(counts, counts.rows // scorer.copies + counts.bad)
    flags = flag(parts) if flag else None
    seconds = time.perf_counter() - started
    new = counts.rows + counts.bad - before.rows - before.bad
    seconds, rate = round(seconds, 3), round(new / seconds, 1)
    summary = Summary(counts.rows, counts.bad, parts, seconds, rate, flags)
    output.finish(parts, {**summary.to_json(), **asdict(scorer.provenance)})
    return summary


Result = tuple[pa.RecordBatch, pa.RecordBatch, int]
"""Results, bad rows, and the number of rows that were read for them."""


@dataclass(frozen=True, slots=True)
class Job:
    """Makes parts of an output; the engines of batch jobs differ in where they call `make`."""

    scorer: Mapper
    rows: Input
    output: Output
    batch_rows: int
    on_error: OnError
    limit: Limit
    advance: Callable[[int], None] = lambda rows: None

    def make(self, parts: Sequence[int], workers: int, before: Counts = _NONE) -> Generator[Counts]:
        """Make parts in their order and yield the counts of each; `before` are earlier counts."""
        # not left to the collection of garbage: it may run while Python starts a thread, which
        # holds a lock that the end of other threads needs
        with closing(self.compute(self.read(parts), workers)) as items:
            for index, results in itertools.groupby(items, key=lambda item: item[0]):
                counts = self.write(index, (item[1] for item in results), before)
                before += counts
                yield counts

    def read(self, parts: Sequence[int]) -> Iterator[Item]:
        """Yield batches of the parts; consecutive parts are read as one stream."""
        batch_rows = max(1, min(self.batch_rows, BATCH_BYTES // self.scorer.layout.row_bytes))
        for _, run in itertools.groupby(enumerate(parts), lambda pair: pair[1] - pair[0]):
            indices = [index for _, index in run]
            start, stop = indices[0] * PART_ROWS, (indices[-1] + 1) * PART_ROWS
            index, room = indices[0], PART_ROWS
            for whole in self.rows.read(start, stop, self.scorer.x, batch_rows):
                batch = whole
                while batch.num_rows >= room:
                    yield index, batch.slice(0, room)
                    yield index, None
                    batch, index, room = batch.slice(room), index + 1, PART_ROWS
                if batch.num_rows:
                    yield index, batch
                    room -= batch.num_rows
            if index in indices:
                yield index, None

    def compute(
        self, items: Iterator[Item], workers: int
    ) -> Generator[tuple[int, Future[Result] | None]]:
        """Score batches in threads; yield the results in order, a few batches behind."""
        window: deque[tuple[int, Future[Result] | None]] = deque()
        executor = ThreadPoolExecutor(workers, "score")
        try:
            for index, batch in items:
                future = None if batch is None else executor.submit(self._score, batch)
                window.append((index, future))
                if len(window) > 2 * workers + 2:
                    yield window.popleft()
            yield from window
        finally:
            executor.shutdown(cancel_futures=True)

    def write(self, index: int, results: Iterator[Future[Result] | None], before: Counts) -> Counts:
        """Write one part; return its counts."""
        with self.output.writing(index, self.scorer.schema) as writer:
            for future in results:
                if future is None:
                    continue
                scores, bad, read = future.result()
                writer.write(scores, bad)
                if bad.num_rows:
                    self._allow(bad, before + writer.counts)
                self.advance(read)
        return writer.counts

    def check(self, counts: Counts, rows: int, latest: str = "") -> None:
        """Stop the job if more rows are bad than the limit allows."""
        if not self.limit.allows(counts.bad, rows):
            raise DataRefused(
                f"{counts.bad} of {rows} rows are bad, more than --max-bad allows{latest}"
            )

    def _score(self, batch: pa.RecordBatch) -> Result:
        return *self.scorer(self.rows.keep(batch)), batch.num_rows

    def _allow(self, bad: pa.RecordBatch, counts: Counts) -> None:
        row = _describe_bad(bad)
        if self.on_error == "fail":
            raise DataRefused(f"bad row, {row}; set such rows aside by --on-error quarantine")
        self.check(counts, self.rows.total, f"; the latest is {row}")


PartExecutor = Callable[[Job, Sequence[int]], Generator[Counts]]


def _describe_bad(bad: pa.RecordBatch) -> str:
    """Show the first columns of the first row, and its reason, which is the last column."""
    *values, reason = (array[0].as_py() for array in bad.columns)
    shown = [
        f"{name} {value!r}" for name, value in zip(bad.schema.names, values[:_SHOWN], strict=False)
    ]
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return f"{', '.join(shown)}{more}: {reason}"


def _part_size(rows: Input, index: int) -> int:
    return min(PART_ROWS, rows.total - index * PART_ROWS)
