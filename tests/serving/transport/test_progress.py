"""Whether a client takes its answers: a little is enough, nothing is not."""

from serving.transport.limits import IDLE_S, PROGRESS, PROGRESS_S
from serving.transport.progress import Progress


def test_a_client_for_whom_nothing_waits_goes_on() -> None:
    progress = Progress(5.0)
    for second in range(200):
        assert progress.look(0, waiting=False, now=5.0 + second)
        assert not progress.stands(5.0 + second)
    assert progress.stands(5.0 + 199 + IDLE_S)


def test_a_client_that_takes_nothing_is_given_up_after_a_while() -> None:
    progress = Progress(0.0)
    assert progress.look(10, waiting=False, now=5.0)
    assert progress.look(10, waiting=True, now=5.0 + PROGRESS_S)
    assert progress.at == 5.0
    assert not progress.look(10, waiting=True, now=5.1 + PROGRESS_S)


def test_a_client_that_takes_enough_goes_on() -> None:
    progress = Progress(0.0)
    for turn in range(1, 9):
        assert progress.look(turn * PROGRESS, waiting=True, now=turn * PROGRESS_S)
        assert progress.at == turn * PROGRESS_S


def test_a_client_that_takes_too_little_is_given_up_though_it_takes_some() -> None:
    progress = Progress(0.0)
    assert progress.look(PROGRESS // 2, waiting=True, now=PROGRESS_S)
    assert not progress.look(PROGRESS - 1, waiting=True, now=PROGRESS_S + 0.1)


def test_little_by_little_is_enough_in_sum() -> None:
    progress = Progress(0.0)
    assert progress.look(PROGRESS // 2, waiting=True, now=PROGRESS_S / 2)
    assert progress.at == 0.0
    assert progress.look(PROGRESS, waiting=True, now=PROGRESS_S)
    assert progress.at == PROGRESS_S


def test_a_client_stands_a_moment_after_it_took_some() -> None:
    progress = Progress(3.0)
    assert not progress.stands(3.0 + IDLE_S / 2)
    assert progress.stands(3.0 + IDLE_S)
