"""The parent's side of the observer."""

import logging
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from serving.live import observing
from serving.live.observing import Observing, open_sockets
from serving.live.options import ObserverOptions


def test_an_observer_that_cannot_start_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(observing, "BACK_OFF_S", (0.01, 0.02))
    tries = threading.Semaphore(0)

    def refuse(self: Observing) -> None:
        tries.release()
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(Observing, "_start", refuse)
    options = ObserverOptions(version_file=tmp_path / "version", status_file=tmp_path / "live")
    ours, theirs = open_sockets()
    with ours, theirs, caplog.at_level(logging.ERROR):
        ours.send(b"a row")
        with Observing(theirs, options, lambda: None, nullcontext):
            assert all(tries.acquire(timeout=20) for _ in range(3))
    assert "Cannot allocate memory" in caplog.text
