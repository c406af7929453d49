"""What a client of HTTP/1.1 may do, beside the limits of all clients."""

HEAD_BYTES = 2**16
"""Bytes of a request's line and header fields."""
MAX_WAITING = 128
"""Requests that a client may send before the first of them is answered (pipelining)."""
BODY_AHEAD = 2**18
"""Bytes of a body that are read before the application takes any."""
CHUNK = 8
"""Bytes that each byte of a body may take on its way: a chunk of one byte takes six."""
MAX_BESIDE = 2**16
"""Bytes beside those: extensions of chunks, and trailers."""
LINGER_S, LINGER_BYTES = 2.0, 2**20
"""How long, and how much, is still read of a request that was answered early: closing at once would
reset the connection, and the client might lose the answer (RFC 9112, section 9.6)."""
MAX_UNSENT = 2**25
"""Bytes of answers that clients do not take, before those that are stuck are ended."""
MAX_HELD = 3 * 2**24
"""Bytes of such answers, before further ones are refused."""
SMALL = 2**16
"""Bytes of answers that are not refused, since few clients at a time keep many of them."""
LOOK_S = 0.1
"""Seconds at least between two looks for such answers."""
