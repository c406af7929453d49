"""Errors of the pipeline's own stages; those of data and devices stand in `serving.errors`."""

from serving.errors import VaeError


class TrainingDiverged(VaeError):
    """A metric or a weight is not finite."""


class TrainingStopped(VaeError):
    """Somebody wanted the training to stop; its state has been saved."""


class ParityFailed(VaeError):
    """The ONNX graphs are not the torch model, or nobody has shown that they are."""

    exit_code = 4


class GateRefused(VaeError):
    """The candidate may not become champion."""

    exit_code = 5


class Stale(VaeError):
    """Another promotion moved the champion while this one was deciding."""

    exit_code = 6
