"""A server without a socket, and a connection to it."""

import pytest

from tests.serving.http2.wire import GREETING, Server, Wire


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def wire(server: Server) -> Wire:
    """A connection that has been greeted."""
    wire = server.connect()
    wire.send(GREETING)
    wire.take()
    return wire
