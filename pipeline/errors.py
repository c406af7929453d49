"""Errors of the pipeline's own stages; errors of data and devices are in `serving.errors`."""

from serving.errors import VaeError


class TrainingDiverged(VaeError):
    """A metric or a weight is not finite."""


class TrainingStopped(VaeError):
    """A signal stopped the training; its state has been saved."""


class ParityFailed(VaeError):
    """The ONNX graphs differ from the torch model, or no check has shown that they agree."""

    exit_code = 4


class GateRefused(VaeError):
    """The candidate may not become champion."""

    exit_code = 5


class Stale(VaeError):
    """The champion was moved while this decision was being made."""

    exit_code = 6
