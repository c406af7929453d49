"""Errors that a user can act on; each class carries the exit code of the command line."""


class VaeError(Exception):
    """Something outside the program went wrong: a store, a disk, a training that diverged."""

    exit_code = 1


class UsageRefused(VaeError):
    """The command was asked for something that it cannot do."""

    exit_code = 2


class DataRefused(VaeError):
    """The data cannot be used: unreadable, of the wrong shape, or outside the support."""

    exit_code = 3


class VerificationFailed(VaeError):
    """Files are missing, damaged, or not those that were sealed."""

    exit_code = 7


class DeviceUnavailable(VaeError):
    """The device that was asked for is not there, or would not run every node."""

    exit_code = 8
