"""Hand a share of the rows that a worker has answered to the observer of the server.

A request that is not chosen costs one subtraction and one comparison. One that is chosen is sent
when the turn of the event loop that answers it has ended. Nothing waits: what the observer cannot
take is counted, and lost.
"""

import asyncio
import errno
import logging
import math
import random
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from serving.live_rows import MAX_MESSAGE, LiveRows
from serving.protocol.messages import Array, InferRequest
from serving.server.shared_counters import SharedCounters

LOG = logging.getLogger(__name__)
_HEAD = 4096
"""Bytes of a message beside its arrays, at most: a character of an id may take 12 of them."""
_ID = 128
_DRAWN = ("score", "impute", "explain")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveShares:
    """Which requests the observer gets, and the socket to it."""

    rows: socket.socket
    """The workers' end of a pair of datagram sockets, which all workers share."""
    watched: float
    """Share of the requests whose rows are scored."""
    captured: float = 0.0
    """Share of the requests that are kept with their answers."""


class RowSampler:
    """Chooses requests at random, each independently of the others, and sends their rows.

    Args:
        shares: which requests to send; None for none.
        counters: count rows that were sent, and those that were not.
        chance: draws uniform numbers.
    """

    def __init__(
        self,
        shares: LiveShares | None,
        counters: SharedCounters,
        chance: random.Random | None = None,
    ) -> None:
        self._shares = shares
        self._counters = counters
        self._chance = chance or random.Random()
        self._share = max(shares.watched, shares.captured) if shares else 0.0
        self.until = math.inf
        """Requests until the next that is chosen."""
        self._draw()

    def _draw(self) -> None:
        """Draw how many requests to count: each is chosen with the same chance."""
        if self._share >= 1:
            self.until = 1
        elif self._share > 0:
            draw = math.log(1 - self._chance.random()) / math.log1p(-self._share)
            self.until = 1 + math.floor(draw)

    def take(
        self,
        request: InferRequest,
        version: tuple[str, str],
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        *,
        drawn: bool,
    ) -> None:
        """Send a request that is chosen, after the present turn of the event loop.

        Args:
            request: what the client asked for.
            version: number and digest of the version that answered.
            inputs: the tensors that the graph took.
            outputs: the tensors of the answer.
            drawn: whether the noise was drawn here, and not given.
        """
        self._draw()
        if self._shares is not None and "x" in inputs:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._send, request, version, inputs, outputs, drawn)

    def _send(
        self,
        request: InferRequest,
        version: tuple[str, str],
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        drawn: bool,
    ) -> None:
        try:
            rows = self._rows_of(request, version, inputs, drawn)
            if rows.captured:
                rows = replace(rows, outputs=outputs)
            if rows.rows:
                self._send_rows(rows)
        except Exception:  # whatever fails here, the requests go on
            LOG.exception("cannot hand rows to the observer")
            self._count("unwatched_rows", "error", len(inputs["x"]))

    def _rows_of(
        self,
        request: InferRequest,
        version: tuple[str, str],
        inputs: Mapping[str, Array],
        drawn: bool,
    ) -> LiveRows:
        assert self._shares is not None
        chance = self._chance.random() * self._share
        has_noise = drawn and request.model in _DRAWN
        return LiveRows(
            operation=request.model,
            version=version[0],
            digest=version[1],
            time=time.time(),
            request=request.id[:_ID],
            x=inputs["x"],
            watched=chance < self._shares.watched,
            captured=chance < self._shares.captured,
            seed=int(request.parameters.get("seed", 0)) if has_noise else None,
            num_samples=inputs["eps"].shape[1] if has_noise else None,
        )

    def _send_rows(self, rows: LiveRows) -> None:
        assert self._shares is not None
        captured = rows.rows if rows.captured else 0
        total = rows.rows if rows.watched else 0
        if rows.size > MAX_MESSAGE - _HEAD:
            self._count("uncaptured_rows", "size", captured)
            captured = 0
            rows = rows.without_answer(MAX_MESSAGE - _HEAD)
            if not (rows.watched and rows.rows):
                self._count("unwatched_rows", "size", total)
                return
        watched = rows.rows if rows.watched else 0
        self._count("unwatched_rows", "size", total - watched)
        try:
            self._shares.rows.sendmsg(rows.pack(), (), socket.MSG_DONTWAIT)
        except OSError as err:
            reason = "busy" if err.errno in (errno.EAGAIN, errno.ENOBUFS) else "error"
            self._count("unwatched_rows", reason, watched)
            self._count("uncaptured_rows", reason, captured)
        else:
            self._counters.add("watched_rows", value=watched)
            self._counters.add("captured_rows", value=captured)

    def _count(self, name: str, reason: str, rows: int) -> None:
        if rows:
            self._counters.add(name, reason, value=rows)
