"""Errors that a user can act on.

Each class carries the exit code of a command, the HTTP status of an answer, and the name of its
gRPC status.
"""


class VaeError(Exception):
    """Something outside the program failed: a store, a disk, a training that diverged."""

    exit_code = 1
    status = 500
    grpc_status = "INTERNAL"
    headers: tuple[tuple[str, str], ...] = ()
    """Further headers of the HTTP answer."""


class UsageRefused(VaeError):
    """The command or the request asked for something that cannot be done."""

    exit_code = 2
    status = 400
    grpc_status = "INVALID_ARGUMENT"


class DataRefused(VaeError):
    """The data cannot be used: unreadable, of the wrong shape, or outside the support."""

    exit_code = 3
    status = 400
    grpc_status = "INVALID_ARGUMENT"


class Drifted(VaeError):
    """Rows differ from a version's held-out rows, and the user asked for that to be a failure."""

    exit_code = 5


class VerificationFailed(VaeError):
    """Files are missing, damaged, or differ from those that were sealed."""

    exit_code = 7


class DeviceUnavailable(VaeError):
    """The requested device is missing, or cannot run every node."""

    exit_code = 8


class Unauthorized(VaeError):
    """The request carries no valid API key."""

    status = 401
    grpc_status = "UNAUTHENTICATED"
    headers = (("www-authenticate", "Bearer"),)


class Forbidden(VaeError):
    """A page of another site may not make this request."""

    status = 403
    grpc_status = "PERMISSION_DENIED"


class NotFound(VaeError):
    """There is no such model, version or path."""

    status = 404
    grpc_status = "NOT_FOUND"


class MethodNotAllowed(VaeError):
    """The path does not take this method."""

    status = 405
    grpc_status = "UNIMPLEMENTED"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.headers = (("allow", allowed),)


class BodyTimeout(VaeError):
    """The body of the request did not arrive in time."""

    status = 408
    grpc_status = "DEADLINE_EXCEEDED"


class TooLarge(VaeError):
    """The body of the request is larger than the limit."""

    status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class EncodingRefused(VaeError):
    """The body of the request is compressed in a way that is not read."""

    status = 415
    grpc_status = "INVALID_ARGUMENT"
    headers = (("accept-encoding", "gzip, deflate"),)


class Overloaded(VaeError):
    """The queue is full; a later request may be answered."""

    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    headers = (("retry-after", "1"),)


class ClientLeft(VaeError):
    """The client closed the connection before its answer was ready."""

    status = 499
    grpc_status = "CANCELLED"


class NotReady(VaeError):
    """The model is not loaded, or the server is stopping."""

    status = 503
    grpc_status = "UNAVAILABLE"
    headers = (("retry-after", "1"),)


class DeadlineExceeded(VaeError):
    """The request waited longer than its deadline."""

    status = 504
    grpc_status = "DEADLINE_EXCEEDED"
