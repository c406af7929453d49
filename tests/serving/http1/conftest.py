"""A server without a socket, and a connection to it."""

import pytest

from tests.serving.http1.wire import Server, Wire


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def wire(server: Server) -> Wire:
    return Wire(server)
