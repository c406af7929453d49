"""What a client of HTTP/2 may do, beside the limits of all clients; and the frames that say so."""

from serving.http2 import frames

MAX_STREAMS = 1024
"""Streams of a connection at a time; its client keeps further calls until others have ended."""
LIST_SIZE = 2**14
"""Bytes of all header fields of a request, with 32 more for each, as the protocol counts them."""
STREAM_WINDOW = 2**20
"""Bytes that a client may send on a stream before what it sent was taken."""
CONNECTION_WINDOW = 2**24
MAX_UNSENT = 2**25
"""Bytes of answers that a connection may hold back and still open streams."""
PING_S = 600.0
"""Seconds between two pings of the server: TCP then finds out that a client is gone."""
TOKENS = 1000
"""Frames without use, in a row and again each second."""
TOKENS_OF_A_FRAME = 4
"""Further ones for each frame of an answer: clients of gRPC open both windows, and ping."""
PAYING = 2**12
"""Bytes of DATA, and of a window that opens, that pay for themselves; some clients open their
windows by no more at a time."""
STREAMS_OF_A_TOKEN = 16
"""Streams whose windows change for one token."""

HELLO = frames.settings_frame(
    {
        frames.MAX_STREAMS: MAX_STREAMS,
        frames.INITIAL_WINDOW: STREAM_WINDOW,
        frames.MAX_HEADER_LIST: LIST_SIZE,
    }
) + frames.number_frame(frames.WINDOW_UPDATE, 0, CONNECTION_WINDOW - 65_535)
