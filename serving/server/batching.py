"""Put waiting requests into one run of a graph.

No request is delayed for a fuller batch: those read in one turn of the event loop, or during the
previous run, go together (the rule of Triton's batcher with no delay). The queue is bounded in
rows; a request whose deadline passed or whose client left is dropped before its run.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np

from serving.errors import DeadlineExceeded, Overloaded
from serving.protocol.messages import Array
from serving.server.shared_counters import SharedCounters

MAX_BATCH_ROWS = 256
"""Rows times draws of one batch: enough that what each run costs besides hardly counts, and few
enough that a small model's run stays on the event loop."""
INLINE_S = 0.001
"""Shorter runs take place on the event loop, since a change of threads would cost more. During a
longer run, in a thread, the loop reads and refuses other requests."""

Key = tuple[str, int]
"""Operation, and draws of each row; requests of one key may share a batch."""
Outputs = Mapping[str, Array]


class QueuedRequest(NamedTuple):
    """The inputs of one request in the queue."""

    inputs: Mapping[str, Array]
    rows: int
    deadline: float
    arrived: float
    result: "asyncio.Future[Outputs]"


class Admission:
    """Counts the requests in progress, and admits at most `most` of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.under_way = 0

    @property
    def full(self) -> bool:
        """Whether no more are admitted."""
        return self.under_way >= self.most

    def refusal(self) -> Overloaded:
        """Return why a request is not admitted."""
        return Overloaded(f"{self.most} requests are in progress: try again in a moment")

    def __enter__(self) -> None:
        """Admit a request.

        Raises:
            Overloaded: as many requests as allowed are in progress.
        """
        if self.full:
            raise self.refusal()
        self.under_way += 1

    def __exit__(self, *error: object) -> None:
        """Count a request as answered."""
        self.under_way -= 1


class Batcher:
    """The queue in front of one engine; lives on one event loop.

    Args:
        compute: runs one operation on checked inputs.
        row_s: seconds that one row of each operation takes, as the warm-up measured them.
        executor: one thread, for runs that are too long for the event loop.
        max_rows: rows times draws that may wait; more are refused.
        counters: count the requests queued and the runs.
    """

    def __init__(
        self,
        compute: Callable[[str, Mapping[str, Array]], Outputs],
        row_s: Mapping[str, float],
        executor: Executor,
        max_rows: int,
        counters: SharedCounters,
    ) -> None:
        self._compute = compute
        self._row_s = row_s
        self._executor = executor
        self._max_rows = max_rows
        self._counters = counters
        self._queues: dict[Key, deque[QueuedRequest]] = {}
        self.queued = 0
        """Rows times draws that wait."""
        self.full = False
        """Whether a request was refused with little room left, and none was taken out since."""
        self.running = False
        """Whether a run is in progress in the thread."""
        self._scheduled = False
        self._known_loop: asyncio.AbstractEventLoop | None = None

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop; asyncio asks the system for it, each time anew."""
        if self._known_loop is None:
            self._known_loop = asyncio.get_running_loop()
        return self._known_loop

    def submit(
        self,
        operation: str,
        inputs: Mapping[str, Array],
        rows: int,
        num_samples: int,
        deadline: float,
    ) -> asyncio.Future[Outputs]:
        """Queue checked inputs; return a future of their outputs.

        Raises:
            Overloaded: the queue would hold more rows than allowed.
        """
        cost = rows * num_samples
        if self.queued and self.queued + cost > self._max_rows:
            self.full = self._max_rows - self.queued <= self._max_rows // 4
            raise Overloaded(
                f"{self.queued} rows wait, of at most {self._max_rows}: try again in a moment"
            )
        loop = self._loop
        waiting = QueuedRequest(inputs, rows, deadline, time.perf_counter(), loop.create_future())
        self._queues.setdefault((operation, num_samples), deque()).append(waiting)
        self.queued += cost
        if not (self._scheduled or self.running):
            self._scheduled = True
            loop.call_soon(self._next)
        return waiting.result

    def _next(self) -> None:
        """Run one batch; run the next in the next turn of the event loop."""
        self._scheduled = False
        if not self._queues:
            return
        key = next(iter(self._queues))
        queue = self._queues.pop(key)
        batch = self._take(key, queue)
        if queue:
            self._queues[key] = queue  # its next batch comes after those of the other keys
        if batch:
            self._run(key, batch)
        elif self._queues:
            self._schedule()

    def _take(self, key: Key, queue: deque[QueuedRequest]) -> list[QueuedRequest]:
        most = max(1, MAX_BATCH_ROWS // key[1])
        batch: list[QueuedRequest] = []
        rows, now = 0, time.perf_counter()
        self.full = False
        while queue and (not batch or rows + queue[0].rows <= most):
            waiting = queue.popleft()
            self.queued -= waiting.rows * key[1]
            if waiting.result.done():  # its client closed the connection
                continue
            if now > waiting.deadline:
                waited = now - waiting.arrived
                waiting.result.set_exception(
                    DeadlineExceeded(f"the deadline passed in the queue, after {waited:.3f} s")
                )
                continue
            batch.append(waiting)
            rows += waiting.rows
        return batch

    def _run(self, key: Key, batch: list[QueuedRequest]) -> None:
        operation, num_samples = key
        rows = sum(waiting.rows for waiting in batch)
        started = time.perf_counter()
        if rows * num_samples * self._row_s.get(operation, math.inf) <= INLINE_S:
            try:
                outputs = self._join_and_compute(operation, batch)
            except Exception as err:  # noqa: BLE001 - raised to each request
                self._finish(operation, batch, started, rows, err)
            else:
                self._finish(operation, batch, started, rows, outputs)
            return
        self.running = True
        future = self._loop.run_in_executor(
            self._executor, self._join_and_compute, operation, batch
        )
        future.add_done_callback(
            lambda done: self._finish(
                operation, batch, started, rows, done.exception() or done.result()
            )
        )

    def _join_and_compute(self, operation: str, batch: list[QueuedRequest]) -> Outputs:
        if len(batch) == 1:
            return self._compute(operation, batch[0].inputs)
        names = batch[0].inputs
        joined = {name: np.concatenate([w.inputs[name] for w in batch]) for name in names}
        return self._compute(operation, joined)

    def _finish(
        self,
        operation: str,
        batch: list[QueuedRequest],
        started: float,
        rows: int,
        result: Outputs | BaseException,
    ) -> None:
        self.running = False
        counters = self._counters
        seconds = time.perf_counter() - started
        counters.observe("compute", operation, seconds)
        counters.add("request_compute", operation, value=seconds * len(batch))
        counters.observe("batch_rows", operation, rows)
        counters.add("rows", operation, value=rows)
        counters.set("last_inference", operation, value=time.time())
        start = 0
        for waiting in batch:
            counters.observe("queue", operation, started - waiting.arrived)
            stop = start + waiting.rows
            if waiting.result.done():
                pass
            elif isinstance(result, BaseException):
                waiting.result.set_exception(result)
            else:
                waiting.result.set_result({n: y[start:stop] for n, y in result.items()})
            start = stop
        if self._queues and not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._next)
