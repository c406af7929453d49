"""Errors of the pipeline's own stages; errors of data and devices are in `serving.errors`."""

from serving.errors import VaeError


class TrainingDiverged(VaeError):
    """A metric or a weight is not finite."""


class TrainingStopped(VaeError):
    """A signal stopped the training; its state has been saved."""


class ProcessFailed(VaeError):
    """Another process of the training failed: `rank`, or one that is unknown.

    Args:
        rank: the process that told of it.
        exit_code: with which all of them end.
        message: why it failed.
        teller: whether that process is this one.
    """

    def __init__(self, rank: int, exit_code: int, message: str, *, teller: bool = False) -> None:
        super().__init__(message if teller else f"process {rank}: {message}")
        self.exit_code, self.teller = exit_code, teller


class ParityFailed(VaeError):
    """The ONNX graphs differ from the torch model, or no check has shown that they agree."""

    exit_code = 4


class GateRefused(VaeError):
    """The candidate may not become champion."""

    exit_code = 5


class Stale(VaeError):
    """The champion was moved while this decision was being made."""

    exit_code = 6
