"""What a client may do on any connection, and for how long."""

GREETING_S = 10.0
"""Seconds within which a client takes part in a TLS handshake, or greets over HTTP/2."""
REQUEST_S = 30.0
"""Seconds within which a request of gRPC arrives."""
PROGRESS, PROGRESS_S = 2**14, 30.0
"""Bytes of its answers that a client takes at least, and within how many seconds."""
IDLE_S = 1.0
"""Seconds in which a client takes nothing, after which it gives way to a new connection."""
CHECK_S = 1.0
"""Seconds between two looks at all connections."""
GOODBYE_S = 1.0
"""Seconds in which clients without calls may say that they know of the end."""
LISTENERS = 8
"""Sockets that listen at the port: libuv takes one connection of each in a turn of the loop, so
that a client would wait for many turns behind a crowd of others."""
BACKLOG = 1024
"""Connections that wait in the kernel to be taken."""
