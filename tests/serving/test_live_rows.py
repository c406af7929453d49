"""Rows on their way from a worker to the observer."""

import socket
from dataclasses import replace

import numpy as np

from serving.live_rows import MAX_MESSAGE, LiveRows


def live_rows(x: np.ndarray, **more: object) -> LiveRows:
    rows = LiveRows(operation="score", version="7", digest="ab", time=1.5, request="r", x=x, seed=3)
    return replace(rows, **more)  # type: ignore[arg-type]


def test_what_was_packed_is_unpacked_byte_for_byte() -> None:
    x = np.array([[1.5, np.nan], [-0.0, 2.0]], np.float32)
    outputs = {"elbo": np.array([1, 2], np.float32), "z": np.zeros((2, 3, 4), np.float32)}
    rows = live_rows(x[:, ::-1], captured=True, num_samples=8, outputs=outputs)
    again = LiveRows.unpack(b"".join(rows.pack()))
    assert again.x.tobytes() == np.ascontiguousarray(x[:, ::-1]).tobytes()
    assert again.x.shape == x.shape
    assert {name: array.tobytes() for name, array in again.outputs.items()} == {
        name: array.tobytes() for name, array in outputs.items()
    }
    assert replace(again, x=rows.x, outputs=outputs) == rows


def test_the_largest_message_fits_into_a_socket_of_the_smallest_default() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 106_496)  # Linux doubles it: 208 KiB
        assert ours.send(bytes(MAX_MESSAGE), socket.MSG_DONTWAIT) == MAX_MESSAGE


def test_rows_that_do_not_fit_are_watched_in_part_and_never_captured_in_part() -> None:
    rows = live_rows(
        np.zeros((100, 10), np.uint8), captured=True, outputs={"elbo": np.zeros(100, np.float32)}
    )
    cut = rows.without_answer(55)
    assert (cut.rows, cut.captured, cut.watched) == (5, False, True)
    assert dict(cut.outputs) == {}
