"""A server that computes nothing: `python echo.py PORT BYTES` answers whatever comes with BYTES.

Its latency is that of the machine and the client. A request must fit into one packet.
"""

import select
import socket
import sys


def main(port: int, size: int) -> None:
    """Answer until it is killed."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    poll, connections = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (size, bytes(size))
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                one, _ = listener.accept()
                connections[one.fileno()] = one
                poll.register(one, select.EPOLLIN)
            elif connections[fd].recv(2**16):
                connections[fd].sendall(answer)
            else:
                poll.unregister(fd)
                connections.pop(fd).close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
