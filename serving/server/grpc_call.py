"""One call of gRPC: the stream of HTTP/2 that carries its messages, its deadline and its status."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import NamedTuple, Protocol

from serving.errors import BodyTimeout, DeadlineExceeded, NotReady, Overloaded, VaeError
from serving.http2.headers import write_block
from serving.http2.stream import Carrier, Stream
from serving.server.grpc_wire import (
    ANSWER,
    OK,
    OK_TRAILERS,
    PREFIX,
    CallHead,
    CallRefused,
    Content,
    decompress,
    most_inflated,
    prefix,
    size_of,
    status_fields,
)
from serving.server.turns import Turns
from serving.transport.limits import REQUEST_S

_MOST_UNSENT = 2**20
"""Bytes of a stream's replies that may wait for its client before the next reply is made."""
_LONGEST_S = 10 * 365 * 86_400
_TURN = 64
"""Messages of a stream that are answered before others get their turn on the event loop."""


class BoundMethod(NamedTuple):
    """A method that is ready to be called with a call and the content of its message."""

    answer: "Callable[[Call, Content], Coroutine[None, None, None]]"
    streams: bool = False
    counted: bool = False
    """Whether it is an inference."""


class CallServer(Protocol):
    """The server of a call, as its call sees it."""

    loop: asyncio.AbstractEventLoop
    max_bytes: int
    stopping: bool
    streams: "set[Call]"
    turns: Turns

    def find(self, path: str) -> BoundMethod:
        """Return what answers the calls of a path."""

    def refuse_at_once(self, message: Content) -> VaeError | None:
        """Return why to refuse an inference without a task, or None if it needs one."""


class Call(Stream):
    """A call, from its header fields to its status."""

    def __init__(
        self, server: CallServer, connection: Carrier, number: int, head: CallHead
    ) -> None:
        super().__init__(connection, number)
        self.head = head
        self.status = ""
        """The name of the status, once there is one."""
        self._server = server
        self._method = server.find(head.path)
        self._loop = server.loop
        self._content: Content = b""
        self._held = 0
        """Bytes of the message that is being answered, which the budget counts, too."""
        self._task: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._waiter: asyncio.Future[None] | None = None
        self._began = False

    def opened(self) -> None:
        """Start the deadline, and a stream's task; others wait for their message."""
        head = self.head
        if head.http_status != 200:
            self.send(trailers=write_block([(b":status", b"%d" % head.http_status)]))
            return
        if head.timeout_s < _LONGEST_S:
            self._due = self.since + head.timeout_s
            self._deadline = self._loop.call_at(self._due, self._expire)
        if self._method.streams:
            self._server.streams.add(self)
            self._run(b"")

    def received(self, data: bytes) -> None:
        """Keep a part of a message; refuse one that is too large before it has arrived."""
        budget = self.connection.budget
        content = self._content
        if not content:
            self._content = data
        elif isinstance(content, bytearray):
            content += data
        else:
            self._content = bytearray(content)
            self._content += data
        if not budget.receive(len(data)):
            self._give_up(_no_room())
            return
        if not self._method.streams:
            try:
                self._check_size()
            except VaeError as err:
                self.refuse(err)
                return
            self.grant()
        else:
            self._wake()

    def finished(self) -> None:
        """Answer a call of one request; tell a stream that no more come."""
        if self._method.streams:
            self._wake()
            return
        try:
            message = self._take()
            if message is None or self._content:
                raise CallRefused("this call takes one message")
        except VaeError as err:
            self.refuse(err)
            return
        if self._method.counted:
            self._server.turns.take(self._loop, partial(self._begin, message))
        else:
            self._run(message)

    def _begin(self, message: Content, refuse: bool) -> None:
        """Begin an inference, or refuse it, unless nobody waits for it any more."""
        if self.closed:
            return
        if refuse and (full := self._server.refuse_at_once(message)):
            self.refuse(full)  # never raised: it is shared, and would keep this frame
        else:
            self._run(message)

    def lost(self) -> None:
        """Stop: the client has cancelled the call, or has gone."""
        self._end("CANCELLED")
        self._stop()

    def overdue(self) -> None:
        """Refuse a request that takes too long to arrive; a stream may take its time."""
        if not self._method.streams:
            self.refuse(BodyTimeout(f"the request did not arrive within {REQUEST_S:g} s"))

    def drained(self) -> None:
        """Make the next reply of a stream."""
        self._wake()

    def wake(self) -> None:
        """Look again whether there is something to wait for: the server is stopping."""
        self._wake()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the header fields of the call."""
        return self.head.metadata

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, or None if there is none."""
        return None if self._due == math.inf else max(self._due - self.connection.time(), 0.0)

    async def messages(self) -> AsyncIterator[Content]:
        """Yield the messages of a stream, each as it arrives.

        Raises:
            NotReady: the server is stopping.
        """
        for count in itertools.count(1):
            message = self._take()
            if message is not None:
                yield message
                if count % _TURN == 0:
                    await asyncio.sleep(0)
            elif self.ended:
                return
            elif self._server.stopping:
                raise NotReady("the server is stopping: call again")
            else:
                await self._wait()

    async def reply(self, *parts: bytes | memoryview) -> None:
        """Send a message of a stream, and wait while the client reads more slowly than this."""
        headers, self._began = b"" if self._began else ANSWER, True
        self.send(prefix(sum(map(len, parts))), *parts, headers=headers)
        while self.queued > _MOST_UNSENT and not self.closed:
            await self._wait()

    def answer(self, *parts: bytes | memoryview) -> None:
        """Send the only message, and the status that says that all is well."""
        if not self.closed:
            size = sum(map(len, parts))
            self.send(prefix(size), *parts, headers=ANSWER, trailers=OK_TRAILERS)
            self._end(OK)

    def end(self) -> None:
        """End a stream of replies."""
        if not self.closed:
            self.send(headers=b"" if self._began else ANSWER, trailers=OK_TRAILERS)
            self._end(OK)

    def refuse(self, err: VaeError, message: str = "") -> None:
        """End the call with the status of an error."""
        if not self.closed:
            fields = status_fields(err.grpc_status, message or str(err))
            trailers = write_block(fields)
            self.send(trailers=trailers if self._began else ANSWER + trailers)
            self._end(err.grpc_status)

    def _run(self, message: Content) -> None:
        # with a name, since asyncio would write one for each
        self._task = asyncio.Task(self._method.answer(self, message), loop=self._loop, name="call")

    def _expire(self) -> None:
        self._give_up(DeadlineExceeded("the deadline passed"))

    def _give_up(self, err: VaeError) -> None:
        """Refuse a call that may be waiting, or be answered, at the moment."""
        self.refuse(err)
        self._stop()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, status: str) -> None:
        self.status = self.status or status
        self._drop(len(self._content) + self._held)
        self._content, self._held = b"", 0
        if self._deadline is not None:
            self._deadline.cancel()
        self._server.streams.discard(self)

    def _drop(self, size: int) -> None:
        self.connection.budget.received -= size

    def _check_size(self) -> None:
        """Check what has arrived of the only message.

        Raises:
            TooLarge, CallRefused: it will not be read.
        """
        content = self._content
        if len(content) >= PREFIX:
            if len(content) > PREFIX + size_of(content, self._server.max_bytes):
                raise CallRefused("this call takes one message")

    def _take(self) -> Content | None:
        """Take the next message if it has arrived; the one before it is answered.

        Raises:
            DataRefused, TooLarge, CallRefused, Overloaded: it cannot be read.
        """
        self._drop(self._held)
        self._held = 0
        content = self._content
        if len(content) < PREFIX:
            self.grant()
            return None
        stop = PREFIX + size_of(content, self._server.max_bytes)
        if len(content) < stop:
            self.grant()
            return None
        flag = content[0]
        message: Content
        if len(content) == stop:
            self._content = b""
            if isinstance(content, bytearray):  # a large message, whose start is cut without a copy
                del content[:PREFIX]
                message = content
            else:
                message = content[PREFIX:]
        else:
            message = bytes(content[PREFIX:stop])
            self._content = content if isinstance(content, bytearray) else bytearray(content)
            del self._content[:stop]
        self._held = stop
        return self._inflate(message) if flag else message

    def _inflate(self, message: Content) -> bytes:
        """Decompress a message, unless what it may hold is more than there is room for."""
        budget, most = self.connection.budget, self._server.max_bytes
        if budget.received + min(most, most_inflated(message)) > budget.max_received:
            raise _no_room()
        whole = decompress(message, self.head.encoding, most)
        budget.receive(len(whole))
        self._held += len(whole)
        return whole

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _no_room() -> Overloaded:
    return Overloaded("too many bytes of requests are in memory: try again")
