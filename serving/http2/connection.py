"""One connection of HTTP/2: its frames change its state, and are handed to its streams.

A client that breaks the protocol is told so by GOAWAY or RST_STREAM. What costs the server work
and the client nothing (pings, settings, resets, empty frames) is paid for with tokens, of which a
connection gets a number each second, and more for what it really receives. Sources: RFC 9113;
CVE-2019-9511 to 9518, CVE-2023-44487 and CVE-2024-27316 for the floods.
"""

import asyncio
import logging
from typing import Any, cast

from serving.http2 import frames, limits
from serving.http2.frame_reader import FrameReader
from serving.http2.frames import NEVER, Code, ConnectionFault, StreamFault
from serving.http2.headers import HeadReader, check_fields, malformed
from serving.http2.sender import Sender
from serving.http2.stream import Owner, Parts, Stream
from serving.http2.tokens import Tokens
from serving.transport.limits import GREETING_S, REQUEST_S
from serving.transport.progress import Progress

LOG = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """The server's end of a connection; `server` makes its streams."""

    def __init__(self, server: Owner) -> None:
        self._server = server
        self.budget = server.budget
        self.streams: dict[int, Stream] = {}
        self.time = server.time
        self._heads: HeadReader[Any] = HeadReader(server.read_head)
        self._reader = FrameReader(self._frame)
        self._since = self.time()
        """When the connection was opened, or began to close."""
        self._progress = Progress(self._since)
        self._last = 0
        self._last_taken = NEVER
        self._uncredited = 0
        self._tokens = Tokens(self._since)
        self._pinged = self._since
        self._stuck = self._draining = self._closing = False
        self.idle, self._seen = 0, -1
        """Whether it has had no stream, or taken nothing, for a second; its last stream then."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        self._transport = cast(asyncio.Transport, transport)
        self._write = self._transport.write
        self.sender = Sender(self._transport)
        if self._server.admit(self):
            self._write(limits.HELLO)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the streams."""
        self._end_all()
        self._server.forget(self)

    def eof_received(self) -> None:
        """End: a client that says no more does not read for long, either."""
        self.close(Code.NO_ERROR)

    def data_received(self, data: bytes) -> None:
        """Read what has arrived."""
        if self._closing:
            return
        try:
            self._reader.feed(data)
        except ConnectionFault as fault:
            self.close(fault.code, str(fault))
        except Exception:
            LOG.exception("internal error in a connection")
            self.close(Code.INTERNAL_ERROR)

    def pause_writing(self) -> None:
        """Keep what is not sent yet."""
        self.sender.paused = True
        self._count_unsent()

    def resume_writing(self) -> None:
        """Send it."""
        self.sender.paused = False
        self._sent(self.sender.resume())

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> bool:
        """Read one frame; return whether to go on."""
        try:
            if kind < len(_READERS):
                _READERS[kind](self, flags, number, payload)
            else:
                self._spend()
        except StreamFault as fault:
            if stream := self.streams.pop(number, None):
                self._end(stream)
            self._spend()
            self._write(frames.number_frame(frames.RST_STREAM, number, fault.code))
        return not self._closing

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._uncredited += size
        if self._uncredited >= limits.CONNECTION_WINDOW // 2:
            self.grant(0, self._uncredited)
            self._uncredited = 0
        if flags & frames.PADDED:
            payload = frames.strip_padding(flags & ~frames.WITH_PRIORITY, payload)
        if size >= limits.PAYING and number not in self.streams:
            self._check_known(number)  # it was on its way when the stream was refused
            return
        stream = self._open_stream(number)
        if not payload and not flags & frames.END_STREAM:
            self._spend()
        stream.receive(payload, size)
        if flags & frames.END_STREAM:
            self._finish(stream)

    def _open_stream(self, number: int) -> Stream:
        """Find a stream whose request has not ended.

        Raises:
            ConnectionFault: there never was one.
            StreamFault: it has ended.
        """
        stream = self.streams.get(number)
        if stream is None or stream.ended:
            self._check_known(number)
            raise StreamFault(Code.STREAM_CLOSED, "the stream has ended")
        return stream

    def _check_known(self, number: int) -> None:
        if not number or number > self._last or number % 2 == 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"there is no stream {number}")

    def _headers(self, flags: int, number: int, block: bytes) -> None:
        if number % 2 == 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if number <= self._last:
            fields = self._heads.decode(block)  # trailers; they must be decoded in any case
            stream = self._open_stream(number)
            if not flags & frames.END_STREAM:
                raise malformed("it does not end with its trailers")
            check_fields(fields)
            self._finish(stream)
            return
        self._last = number
        if number > self._last_taken:  # the client knows by now, or soon, that it is not answered
            self._heads.decode(block)
            return
        head = self._heads.read(block)
        if len(self.streams) >= limits.MAX_STREAMS or self.sender.unsent > limits.MAX_UNSENT:
            raise StreamFault(Code.REFUSED_STREAM, "too many streams")
        stream = self.streams[number] = self._server.make_stream(self, number, head)
        stream.opened()
        if flags & frames.END_STREAM:
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        stream.ended = True
        if not stream.closed:
            stream.finished()

    def _rst_stream(self, flags: int, number: int, payload: bytes) -> None:
        self._check_known(number)
        self._spend()
        if stream := self.streams.pop(number, None):
            self._end(stream)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        self._spend()
        settings = frames.read_settings(payload)
        self.sender.frame_size = settings.get(frames.MAX_FRAME, self.sender.frame_size)
        if frames.INITIAL_WINDOW in settings:
            streams = self.streams.values()
            self._spend(len(streams) // limits.STREAMS_OF_A_TOKEN)
            self._sent(self.sender.set_window(settings[frames.INITIAL_WINDOW], streams))
        self._write(frames.frame(frames.SETTINGS, frames.ACK))

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        self._spend()
        if flags & frames.ACK:
            self._drained()
        else:
            self._write(frames.frame(frames.PING, frames.ACK, payload=payload))

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:
        increment = frames.NUMBER.unpack(payload)[0] & NEVER
        stream = self.streams.get(number)
        if increment < limits.PAYING or (number and stream is None):
            self._spend()
        if stream is not None:
            self._sent(self.sender.enlarge_stream(stream, increment))
        elif number:
            self._check_known(number)
        else:
            self._sent(self.sender.enlarge(increment))

    def _push_promise(self, flags: int, number: int, payload: bytes) -> None:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a client pushes nothing")

    def _pay(self, flags: int, number: int, payload: bytes) -> None:
        """Pay for a frame that says nothing; a CONTINUATION has been read before."""
        self._spend()

    def _spend(self, tokens: int = 1) -> None:
        """Pay for a frame that costs the server work, and its client nothing.

        Raises:
            ConnectionFault: there were too many.
        """
        if not self._tokens.spend(tokens):
            self._tokens.earn(self.time(), self.sender.frames)

    @property
    def initial_window(self) -> int:
        """Bytes that the client is ready to receive on a new stream."""
        return self.sender.initial_window

    def grant(self, number: int, size: int) -> None:
        """Let the client send more on a stream, or on the connection as a whole."""
        self._write(frames.number_frame(frames.WINDOW_UPDATE, number, size))

    def send(self, stream: Stream, parts: Parts, headers: bytes, trailers: bytes) -> None:
        """Send header blocks and data of a stream, as soon as the client is ready for them."""
        stream.closed = bool(trailers)
        if not self.sender.send(stream, parts, headers, trailers):
            self._count_unsent()
        elif trailers:
            self._answered(stream)

    def _sent(self, streams: list[Stream]) -> None:
        """Go on with streams of which everything that was queued has been sent."""
        for stream in streams:
            if stream.trailers:
                self._answered(stream)
            else:
                stream.drained()
        if self._stuck:
            self._count_unsent()

    def _answered(self, stream: Stream) -> None:
        if self.streams.pop(stream.number, None) is None:
            return  # what it sent was too much, and ended the connection
        if not stream.ended:
            self._write(frames.number_frame(frames.RST_STREAM, stream.number, Code.NO_ERROR))
        if self._last_taken != NEVER and not self.streams:
            self.close(Code.NO_ERROR)

    def _count_unsent(self) -> None:
        if self._closing:
            return
        size = self.sender.unsent + self.sender.cut
        if self.sender.paused:
            size += self._transport.get_write_buffer_size()
        self._stuck = size > 0
        self.budget.set_unsent(self, size)

    def reset(self, stream: Stream, code: Code) -> None:
        """End a stream without an answer."""
        self.streams.pop(stream.number, None)
        self._write(frames.number_frame(frames.RST_STREAM, stream.number, code))
        self._end(stream)

    def _end(self, stream: Stream) -> None:
        stream.closed = True
        self.sender.forget(stream)
        stream.lost()

    def _end_all(self) -> None:
        self._closing, self.idle = True, 0
        self.budget.set_unsent(self, 0)
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            self._end(stream)

    @property
    def busy(self) -> bool:
        """Whether there are calls to answer."""
        return bool(self.streams)

    def give_way(self) -> None:
        """End, to make room: at once, if the client does not read."""
        reads = not (self.streams or self._transport.get_write_buffer_size())
        self.close(Code.NO_ERROR) if reads else self.abort()

    def drain(self) -> None:
        """Ask the client to open no more streams; those that it has opened are answered."""
        if not self._closing:
            self._draining = True
            self._write(frames.goaway_frame(NEVER, Code.NO_ERROR))
            self._write(frames.frame(frames.PING, payload=bytes(8)))

    def _drained(self) -> None:
        """Go on when the client has seen that the server drains, and has answered the ping."""
        if self._draining and self._last_taken == NEVER:
            self._last_taken = self._last
            if not self.streams:
                self.close(Code.NO_ERROR)
            else:
                self._write(frames.goaway_frame(self._last, Code.NO_ERROR))

    def close(self, code: Code, message: str = "") -> None:
        """Say why, and end the connection once the client has read all that was written."""
        if not self._closing:
            self._since = self.time()
            self._end_all()
            self._write(frames.goaway_frame(min(self._last, self._last_taken), code, message))
            self.budget.set_unsent(self, self._transport.get_write_buffer_size())
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        self._end_all()
        self._transport.abort()

    def check(self, now: float) -> None:
        """End the connection if its client does not go on; called each second."""
        if (self._closing or not self._reader.greeted) and now - self._since > GREETING_S:
            self.abort()
            return
        if now - self._pinged > limits.PING_S:
            self._pinged = now
            self._write(frames.frame(frames.PING, payload=bytes(8)))
        left = self.sender.sent - self._transport.get_write_buffer_size()
        if not self._progress.look(left, self._stuck, now):
            self.abort()
            return
        stopped = not self.streams or self._progress.stands(now)
        self.idle, self._seen = int(stopped and self._seen == self._last), self._last
        for stream in [*self.streams.values()]:
            if not stream.ended and now - stream.since > REQUEST_S:
                stream.overdue()


_READERS = (
    Connection._data,
    Connection._headers,
    Connection._pay,
    Connection._rst_stream,
    Connection._settings,
    Connection._push_promise,
    Connection._ping,
    Connection._pay,
    Connection._window_update,
    Connection._pay,
)
"""What reads each frame, by its type."""
