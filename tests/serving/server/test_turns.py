"""Which inferences begin in a turn of the event loop, which wait, and which are refused."""

import asyncio
import copy
from collections.abc import Callable
from functools import partial

from serving.server.turns import REFUSALS, TURN, Turns


class Crowd:
    """Requests by their numbers, and what became of them."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.begun: list[int] = []
        self.refused: list[int] = []
        self.turns = Turns(lambda: self.room)

    def come(self, numbers: range) -> None:
        loop = asyncio.get_running_loop()
        for number in numbers:
            self.turns.take(loop, partial(self.begin, number))

    def begin(self, number: int, refuse: bool) -> None:
        (self.refused if refuse else self.begun).append(number)
        self.room -= not refuse


def played(play: Callable[[], Crowd], turns: int) -> tuple[list[int], list[int]]:
    """Return who has begun, and who was refused, after so many turns of the loop."""

    async def run() -> tuple[list[int], list[int]]:
        crowd = play()
        for _ in range(turns):
            await asyncio.sleep(0)
        return copy.deepcopy((crowd.begun, crowd.refused))

    return asyncio.run(run())


def crowd_of(count: int, room: int) -> Crowd:
    crowd = Crowd(room)
    crowd.come(range(count))
    return crowd


def test_those_for_whom_there_is_room_begin_at_once_and_in_order() -> None:
    begun, _ = played(lambda: crowd_of(5, 256), 0)
    assert begun == [*range(5)]


def test_a_turn_begins_no_more_than_a_batch() -> None:
    begun, refused = played(lambda: crowd_of(3 * TURN, 10_000), 0)
    assert begun == [*range(TURN)]
    begun, refused = played(lambda: crowd_of(3 * TURN, 10_000), 10)
    assert sorted(begun) == [*range(3 * TURN)]
    assert refused == []


def test_those_that_wait_longest_are_refused_a_few_in_a_turn() -> None:
    begun, refused = played(lambda: crowd_of(100, 10), 1)
    assert begun == [*range(10)]
    assert refused == [*range(10, 10 + REFUSALS)]
    begun, refused = played(lambda: crowd_of(100, 10), 20)
    assert refused == [*range(10, 100)]


def test_the_newest_are_accepted_when_there_is_room_again() -> None:
    def play() -> Crowd:
        crowd = crowd_of(100, 0)

        def make_room() -> None:
            crowd.room = 3

        asyncio.get_running_loop().call_soon(make_room)  # after the first turn
        return crowd

    begun, refused = played(play, 3)
    assert begun == [97, 98, 99]
    assert refused[: 2 * REFUSALS] == [*range(2 * REFUSALS)]


def test_nobody_is_forgotten() -> None:
    begun, refused = played(lambda: crowd_of(1000, 50), 1000 // REFUSALS + 2)
    assert sorted(begun + refused) == [*range(1000)]


def test_requests_that_come_later_wait_for_those_before_them_to_be_refused() -> None:
    def play() -> Crowd:
        crowd = crowd_of(20, 0)
        asyncio.get_running_loop().call_soon(crowd.come, range(20, 25))
        return crowd

    _, refused = played(play, 3)
    assert refused == [*range(25)]
