"""Errors that a user can act on.

Each class carries the exit code of the command line and the status of an answer of the server:
that of HTTP, and the name of gRPC's.
"""


class VaeError(Exception):
    """Something outside the program went wrong: a store, a disk, a training that diverged."""

    exit_code = 1
    status = 500
    grpc_status = "INTERNAL"
    headers: tuple[tuple[str, str], ...] = ()
    """What an answer over HTTP says besides."""


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


class VerificationFailed(VaeError):
    """Files are missing, damaged, or not those that were sealed."""

    exit_code = 7


class DeviceUnavailable(VaeError):
    """The device that was asked for is not there, or would not run every node."""

    exit_code = 8


class Unauthorized(VaeError):
    """The request carries no valid API key."""

    status = 401
    grpc_status = "UNAUTHENTICATED"
    headers = (("www-authenticate", "Bearer"),)


class Forbidden(VaeError):
    """Not from there."""

    status = 403
    grpc_status = "PERMISSION_DENIED"


class NotFound(VaeError):
    """There is no such model, version or address."""

    status = 404
    grpc_status = "NOT_FOUND"


class MethodNotAllowed(VaeError):
    """The address is there, but not for this method."""

    status = 405
    grpc_status = "UNIMPLEMENTED"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.headers = (("allow", allowed),)


class BodyTimeout(VaeError):
    """The body of a request did not come in time."""

    status = 408
    grpc_status = "DEADLINE_EXCEEDED"


class LengthRequired(VaeError):
    """The request does not say how long its body is."""

    status = 411
    grpc_status = "INVALID_ARGUMENT"


class TooLarge(VaeError):
    """The request holds more than the server takes."""

    status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class Overloaded(VaeError):
    """The queue is full: try again in a moment."""

    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    headers = (("retry-after", "1"),)


class ClientLeft(VaeError):
    """Nobody waits for the answer any more."""

    status = 499
    grpc_status = "CANCELLED"


class NotReady(VaeError):
    """The model is not loaded, or the server is about to stop."""

    status = 503
    grpc_status = "UNAVAILABLE"
    headers = (("retry-after", "1"),)


class DeadlineExceeded(VaeError):
    """The request waited longer than its deadline."""

    status = 504
    grpc_status = "DEADLINE_EXCEEDED"
