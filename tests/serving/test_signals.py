import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from serving.signals import deferred_signals

SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture
def seen() -> Iterator[list[int]]:
    """Signals that reach the handlers from before."""
    numbers: list[int] = []
    before = {number: signal.getsignal(number) for number in (SIGINT, SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: numbers.append(number))
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [SIGINT, SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_waits_for_the_end_of_the_block(seen: list[int], number: int) -> None:
    with deferred_signals() as came:
        assert not came()
        signal.raise_signal(number)
        assert came()
        assert seen == []
    assert seen == [number]
    signal.raise_signal(number)
    assert seen == [number, number]


def test_of_several_signals_the_first_counts_also_where_the_block_breaks_off(
    seen: list[int],
) -> None:
    with pytest.raises(ValueError, match="broken"), deferred_signals():  # noqa: PT012
        for number in (SIGTERM, SIGINT, SIGINT):
            signal.raise_signal(number)
        raise ValueError("broken")
    assert seen == [SIGTERM]


def test_without_a_signal_nothing_is_raised(seen: list[int]) -> None:
    with deferred_signals() as came:
        pass
    assert not came()
    assert seen == []


def test_an_ignored_signal_stays_ignored(seen: list[int]) -> None:
    signal.signal(SIGINT, signal.SIG_IGN)
    with deferred_signals() as came:
        signal.raise_signal(SIGINT)
        assert not came()
    assert signal.getsignal(SIGINT) is signal.SIG_IGN


def test_outside_the_main_thread_handlers_stay(seen: list[int]) -> None:
    before: list[Callable[..., object] | int | None] = [signal.getsignal(SIGINT)]

    def work() -> None:
        with deferred_signals() as came:
            before.append(signal.getsignal(SIGINT))
            assert not came()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert before[0] is before[1]
