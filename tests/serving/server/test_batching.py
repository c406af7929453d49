"""The batcher on an event loop: which requests share a batch, are dropped, or are refused."""

import asyncio
import math
import threading
import time
from collections.abc import Mapping

import pytest

from serving.engine import MAX_BATCH
from serving.errors import DeadlineExceeded, Overloaded
from serving.server.batching import INLINE_S, MAX_BATCH_ROWS
from serving.server.shared_counters import HISTOGRAMS, SharedCounters
from tests.serving.server.recorder import INLINE, THREADED, MakeBatcher, Recorder, began, rows, run

FAR = math.inf


def test_requests_of_one_turn_go_together_and_get_their_own_rows(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher()
        futures = [
            batcher.submit("encode", rows(*values), len(values), 1, FAR)
            for values in ([1.0], [2.0, 3.0], [], [4.0])
        ]
        assert recorder.runs == []
        found = [await future for future in futures]
        assert recorder.runs == [("encode", [1, 2, 3, 4])]
        assert [outputs["double"].tolist() for outputs in found] == [[2], [4, 6], [], [8]]
        assert [outputs["negative"].tolist() for outputs in found] == [[-1], [-2, -3], [], [-4]]

    run(test())


def test_nothing_is_delayed_for_a_fuller_batch(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher()
        future = batcher.submit("encode", rows(1), 1, 1, FAR)
        await asyncio.sleep(0)
        assert future.done()
        assert recorder.runs == [("encode", [1])]

    run(test())


def test_requests_that_arrive_during_a_run_share_the_next_batch(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher(THREADED)
        recorder.go.clear()
        first = batcher.submit("encode", rows(1), 1, 1, FAR)
        await began(recorder)
        others = []
        for value in (2, 3, 4):
            others.append(batcher.submit("encode", rows(value), 1, 1, FAR))
            await asyncio.sleep(0)
        recorder.go.set()
        assert (await first)["double"].tolist() == [2]
        assert [(await other)["double"].tolist() for other in others] == [[4], [6], [8]]
        assert recorder.runs == [("encode", [1]), ("encode", [2, 3, 4])]

    run(test())


def test_operations_and_draws_never_share_a_batch(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher()
        asked = [("score", 1), ("score", 2), ("encode", 1), ("score", 1), ("encode", 1)]
        futures = [
            batcher.submit(operation, rows(place), 1, draws, FAR)
            for place, (operation, draws) in enumerate(asked)
        ]
        for place, future in enumerate(futures):
            assert (await future)["double"].tolist() == [2 * place]
        assert recorder.runs == [("score", [0, 3]), ("score", [1]), ("encode", [2, 4])]

    run(test())


def test_operations_take_turns(make_batcher: MakeBatcher, recorder: Recorder) -> None:
    async def test() -> None:
        batcher = make_batcher()
        many = [
            batcher.submit("encode", rows(*([0.0] * MAX_BATCH)), MAX_BATCH, 1, FAR)
            for _ in range(3)
        ]
        other = batcher.submit("decode", rows(1), 1, 1, FAR)
        await asyncio.gather(*many, other)
        assert [operation for operation, _ in recorder.runs] == [
            "encode",
            "decode",
            "encode",
            "encode",
        ]

    run(test())


@pytest.mark.parametrize(
    ("draws", "sizes", "expected"),
    [
        (1, [MAX_BATCH_ROWS - 1, 1, 1], [MAX_BATCH_ROWS, 1]),
        (1, [150, 150, 50], [150, 200]),
        (1, [3000, 1], [3000, 1]),
        (MAX_BATCH_ROWS // 8, [5, 3, 1], [8, 1]),
        (MAX_BATCH_ROWS, [1, 1], [1, 1]),
        (MAX_BATCH_ROWS + 1, [1, 1], [1, 1]),
    ],
    ids=str,
)
def test_a_batch_is_bounded_in_rows_and_in_rows_times_draws(
    make_batcher: MakeBatcher, recorder: Recorder, draws: int, sizes: list[int], expected: list[int]
) -> None:
    async def test() -> None:
        batcher = make_batcher(max_rows=10**9)
        futures = [
            batcher.submit("score", rows(*[float(place)] * size), size, draws, FAR)
            for place, size in enumerate(sizes)
        ]
        for place, future in enumerate(futures):
            assert (await future)["double"].tolist() == [2.0 * place] * sizes[place]
        assert [len(values) for _, values in recorder.runs] == expected

    run(test())


def test_the_queue_is_bounded_in_rows_times_draws(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher(max_rows=10)
        first = batcher.submit("score", rows(1, 2), 2, 4, FAR)
        assert batcher.queued == 8
        with pytest.raises(Overloaded, match="8 rows wait, of at most 10:"):
            batcher.submit("score", rows(3), 1, 3, FAR)
        second = batcher.submit("score", rows(3), 1, 2, FAR)
        assert batcher.queued == 10
        with pytest.raises(Overloaded):
            batcher.submit("encode", rows(4), 1, 1, FAR)
        await asyncio.gather(first, second)
        assert batcher.queued == 0
        await batcher.submit("encode", rows(4), 1, 1, FAR)
        assert [values for _, values in recorder.runs] == [[1, 2], [3], [4]]

    run(test())


def test_a_request_larger_than_the_queue_runs_when_nothing_waits(make_batcher: MakeBatcher) -> None:
    async def test() -> None:
        batcher = make_batcher(max_rows=2)
        outputs = await batcher.submit("encode", rows(1, 2, 3), 3, 1, FAR)
        assert outputs["double"].tolist() == [2, 4, 6]

    run(test())


def test_a_request_whose_deadline_passed_is_not_computed(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher(THREADED)
        recorder.go.clear()
        first = batcher.submit("encode", rows(1), 1, 1, FAR)
        await began(recorder)
        soon = time.perf_counter() + 0.01
        late = batcher.submit("encode", rows(2), 1, 1, soon)
        other = batcher.submit("encode", rows(3), 1, 1, FAR)
        while time.perf_counter() <= soon:
            await asyncio.sleep(0)
        recorder.go.set()
        with pytest.raises(DeadlineExceeded, match=r"the deadline passed in the queue, after 0\.0"):
            await late
        assert (await other)["double"].tolist() == [6]
        await first
        assert recorder.runs == [("encode", [1]), ("encode", [3])]
        assert batcher.queued == 0

    run(test())


def test_a_queue_of_late_requests_does_not_block_the_other_queues(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher()
        late = batcher.submit("encode", rows(1), 1, 1, 0.0)
        other = batcher.submit("decode", rows(2), 1, 1, FAR)
        assert (await other)["double"].tolist() == [4]
        with pytest.raises(DeadlineExceeded):
            await late
        assert recorder.runs == [("decode", [2])]

    run(test())


def test_a_request_whose_client_left_is_not_computed(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher()
        futures = [batcher.submit("encode", rows(v), 1, 1, FAR) for v in (1, 2, 3)]
        futures[1].cancel()
        assert (await futures[0])["double"].tolist() == [2]
        assert (await futures[2])["double"].tolist() == [6]
        assert recorder.runs == [("encode", [1, 3])]
        assert batcher.queued == 0

    run(test())


def test_a_client_that_leaves_during_its_run_disturbs_nobody(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher(THREADED)
        recorder.go.clear()
        futures = [batcher.submit("encode", rows(v, -v), 2, 1, FAR) for v in (1, 2, 3)]
        await began(recorder)
        futures[1].cancel()
        recorder.go.set()
        assert (await futures[0])["double"].tolist() == [2, -2]
        assert (await futures[2])["double"].tolist() == [6, -6]

    run(test())


@pytest.mark.parametrize("row_s", [INLINE, THREADED], ids=["inline", "threaded"])
def test_a_run_that_fails_fails_each_of_its_requests_and_no_other(
    make_batcher: MakeBatcher, recorder: Recorder, row_s: Mapping[str, float]
) -> None:
    async def test() -> None:
        batcher = make_batcher(row_s)
        recorder.error = ValueError("no memory")
        futures = [batcher.submit("encode", rows(v), 1, 1, FAR) for v in (1, 2)]
        for future in futures:
            with pytest.raises(ValueError, match="no memory"):
                await future
        recorder.error = None
        outputs = await batcher.submit("encode", rows(3), 1, 1, FAR)
        assert outputs["double"].tolist() == [6]
        assert batcher.queued == 0

    run(test())


def test_the_queue_is_full_from_a_refusal_until_a_request_leaves_it(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher(THREADED, max_rows=8)
        recorder.go.clear()
        futures = [batcher.submit("encode", rows(1), 1, 1, FAR)]
        await began(recorder)
        for queued, cost, full in ((3, 6, False), (7, 2, True)):
            added = queued - batcher.queued
            futures.append(batcher.submit("encode", rows(*range(added)), added, 1, FAR))
            assert not batcher.full
            with pytest.raises(Overloaded, match=f"{queued} rows wait, of at most 8:"):
                batcher.submit("encode", rows(*range(cost)), cost, 1, FAR)
            assert batcher.full == full
        recorder.go.set()
        await asyncio.gather(*futures)
        assert not batcher.full

    run(test())


def test_short_runs_stay_on_the_loop_and_long_ones_go_to_the_thread(
    make_batcher: MakeBatcher, recorder: Recorder
) -> None:
    async def test() -> None:
        batcher = make_batcher({"encode": INLINE_S / 4, "score": INLINE_S / 4})
        await batcher.submit("encode", rows(1, 2, 3, 4), 4, 1, FAR)
        await batcher.submit("encode", rows(1, 2, 3, 4, 5), 5, 1, FAR)
        await batcher.submit("score", rows(1, 2), 2, 2, FAR)
        await batcher.submit("score", rows(1, 2), 2, 3, FAR)
        main = threading.main_thread()
        assert [thread is main for thread in recorder.threads] == [True, False, True, False]
        assert recorder.threads[1].name.startswith("engine")

    run(test())


def test_the_loop_is_free_during_a_long_run(make_batcher: MakeBatcher, recorder: Recorder) -> None:
    async def test() -> None:
        batcher = make_batcher(THREADED)
        recorder.go.clear()
        future = batcher.submit("encode", rows(1), 1, 1, FAR)
        await began(recorder)
        # the run ends only after this: a blocked loop would never reach this line
        asyncio.get_running_loop().call_soon(recorder.go.set)
        assert (await future)["double"].tolist() == [2]

    run(test())


def test_one_long_run_at_a_time(make_batcher: MakeBatcher, recorder: Recorder) -> None:
    async def test() -> None:
        batcher = make_batcher(THREADED)
        recorder.go.clear()
        futures = [batcher.submit("encode", rows(1), 1, 1, FAR)]
        await began(recorder)
        for operation in ("decode", "score", "encode"):
            futures.append(batcher.submit(operation, rows(2), 1, 1, FAR))
            await asyncio.sleep(0)
        assert len(recorder.threads) == 1
        assert batcher.queued == 3
        recorder.go.set()
        await asyncio.gather(*futures)
        assert [operation for operation, _ in recorder.runs[1:]] == ["decode", "score", "encode"]

    run(test())


def test_runs_rows_and_waits_are_counted(
    make_batcher: MakeBatcher, counters: SharedCounters
) -> None:
    def counted(name: str) -> tuple[float, float]:
        places = range(len(HISTOGRAMS[name]) + 1)
        count = sum(counters.total(name, "encode", place) for place in places)
        return count, counters.total(name, "encode", "sum")

    async def test() -> None:
        batcher = make_batcher()
        await asyncio.gather(
            *(batcher.submit("encode", rows(*[1.0] * size), size, 1, FAR) for size in (1, 2, 4))
        )
        await batcher.submit("encode", rows(1, 2), 2, 1, FAR)

    before = time.time()
    run(test())
    assert counted("batch_rows") == (2, 9)
    assert counters.total("batch_rows", "encode", HISTOGRAMS["batch_rows"].index(8.0)) == 1
    assert counters.total("rows", "encode") == 9
    assert counted("queue")[0] == 4
    runs, seconds = counted("compute")
    assert runs == 2
    # three requests waited for all of the first run, and one for the second
    assert seconds < counters.total("request_compute", "encode") <= 3 * seconds
    assert 0 < counted("queue")[1] < 20
    assert before <= counters.maximum("last_inference", "encode") <= time.time()
