# mypy: ignore-errors
"""The session that every peer runs: one thread, like the plain loop of onnxruntime."""

import os

import onnxruntime


def open_session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(os.environ["GRAPH"], options, providers=providers)
