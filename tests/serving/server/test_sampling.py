"""The choice of requests for the observer, and their way there."""

import asyncio
import random
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serving.live_rows import MAX_MESSAGE, LiveRows
from serving.protocol.messages import InferRequest
from serving.server.sampling import LiveShares, RowSampler
from serving.server.shared_counters import SharedCounters

X = np.arange(60, dtype=np.uint8).reshape(2, 6, 5)
SCORED: dict[str, np.ndarray] = {"x": X, "eps": np.zeros((2, 4, 3), np.float32)}
ANSWER = {"elbo": np.array([1, 2], np.float32)}


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        yield ours, theirs


def request_of(operation: str = "score", **more: Any) -> InferRequest:
    return InferRequest(operation, {}, **more)


def received(end: socket.socket) -> list[LiveRows]:
    found = []
    while True:
        try:
            found.append(LiveRows.unpack(end.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)))
        except BlockingIOError:
            return found


def take(sampler: RowSampler, inputs: dict[str, np.ndarray], **more: Any) -> None:
    async def turn() -> None:
        sampler.take(
            request_of(id="r" * 200, parameters={"seed": 5}, **more),
            ("7", "ab"),
            inputs,
            ANSWER,
            drawn=True,
        )
        await asyncio.sleep(0)

    asyncio.run(turn())


def test_a_captured_request_arrives_with_its_answer_and_what_drew_it(
    ends: tuple[socket.socket, socket.socket], counters: SharedCounters
) -> None:
    sampler = RowSampler(LiveShares(rows=ends[0], watched=1.0, captured=1.0), counters)
    take(sampler, SCORED)
    (rows,) = received(ends[1])
    assert rows.x.tobytes() == X.tobytes()
    assert rows.outputs["elbo"].tobytes() == ANSWER["elbo"].tobytes()
    assert (rows.seed, rows.num_samples, rows.version, rows.digest) == (5, 4, "7", "ab")
    assert len(rows.request) == 128
    assert counters.total("watched_rows") == counters.total("captured_rows") == 2


def test_what_has_no_x_and_what_nobody_asked_for_is_not_sent(
    ends: tuple[socket.socket, socket.socket], counters: SharedCounters
) -> None:
    take(RowSampler(LiveShares(rows=ends[0], watched=1.0), counters), {"z": X})
    take(RowSampler(LiveShares(rows=ends[0], watched=1.0), counters), {"x": X[:0]})
    sampler = RowSampler(None, counters)
    take(sampler, SCORED)
    assert sampler.until == float("inf")
    assert received(ends[1]) == []


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_each_request_is_chosen_with_the_same_chance(
    ends: tuple[socket.socket, socket.socket], counters: SharedCounters, share: float
) -> None:
    sampler = RowSampler(LiveShares(rows=ends[0], watched=share), counters, chance=random.Random(1))
    gaps = []
    for _ in range(20_000):
        gaps.append(sampler.until)
        sampler._draw()
    assert min(gaps) == 1
    assert np.mean(gaps) == pytest.approx(1 / share, rel=0.03)
    assert np.mean(np.array(gaps) == 1) == pytest.approx(share, rel=0.1)


def test_the_smaller_share_is_kept_of_those_that_are_watched(
    ends: tuple[socket.socket, socket.socket], counters: SharedCounters
) -> None:
    shares = LiveShares(rows=ends[0], watched=0.2, captured=0.05)
    sampler = RowSampler(shares, counters, chance=random.Random(1))
    found = []
    for _ in range(400):
        take(sampler, SCORED)
        found += received(ends[1])
    assert all(each.watched for each in found)
    captured = [each for each in found if each.captured]
    assert 60 < len(captured) < 140
    assert all(bool(each.outputs) == each.captured for each in found)


def test_a_request_that_is_too_large_is_watched_in_part_and_counted(
    ends: tuple[socket.socket, socket.socket], counters: SharedCounters
) -> None:
    sampler = RowSampler(LiveShares(rows=ends[0], watched=1.0, captured=1.0), counters)
    take(sampler, {**SCORED, "x": np.zeros((10_000, 30), np.uint8)})
    (rows,) = received(ends[1])
    assert not rows.captured
    assert 6000 < rows.rows < 10_000
    assert counters.total("uncaptured_rows", "size") == 10_000
    assert counters.total("unwatched_rows", "size") == 10_000 - rows.rows
    assert counters.total("watched_rows") == rows.rows


def test_what_nobody_takes_is_counted_and_nothing_waits(
    ends: tuple[socket.socket, socket.socket], counters: SharedCounters
) -> None:
    sampler = RowSampler(LiveShares(rows=ends[0], watched=1.0), counters)
    for _ in range(5000):
        if counters.total("unwatched_rows", "busy"):
            break
        take(sampler, SCORED)
    assert counters.total("unwatched_rows", "busy") == 2
    ends[1].close()
    take(sampler, SCORED)
    assert counters.total("unwatched_rows", "error") == 2
    ends[0].close()
    take(sampler, SCORED)
    assert counters.total("unwatched_rows", "error") == 4


def test_a_fault_of_the_sampler_reaches_no_request(
    ends: tuple[socket.socket, socket.socket],
    counters: SharedCounters,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sampler = RowSampler(LiveShares(rows=ends[0], watched=1.0), counters)
    take(sampler, {"x": np.array([object(), object()])})
    assert "cannot hand rows to the observer" in caplog.text
    assert counters.total("unwatched_rows", "error") == 2


def test_a_message_is_read_whole_whatever_its_id_and_its_tensors(
    ends: tuple[socket.socket, socket.socket], counters: SharedCounters
) -> None:
    """An id takes twelve bytes for a character, and a table has seven scores."""
    sampler = RowSampler(LiveShares(rows=ends[0], watched=1.0, captured=1.0), counters)
    answer = {f"column_log_likelihood_{n}": np.ones(1, np.float32) for n in range(8)}
    request = request_of(id="\U0001f600" * 200)

    async def turn(size: int) -> None:
        inputs = {"x": np.zeros((1, size), np.uint8)}
        sampler.take(request, ("7", "d" * 64), inputs, answer, drawn=False)
        await asyncio.sleep(0)

    for size in range(MAX_MESSAGE - 8192, MAX_MESSAGE, 64):
        asyncio.run(turn(size))
        received(ends[1])
    assert counters.total("captured_rows") > 0
    assert counters.total("unwatched_rows", "size") > 0
