# mypy: ignore-errors
"""Triton's Python backend.

Run this file once to write what the server reads: `on_triton.py SERVER FOLDER`.
"""

import ctypes
import shutil
import sys
from pathlib import Path

CONFIG = """\
name: "reconstruct"
backend: "python"
max_batch_size: 128
dynamic_batching { }
input [ { name: "x" data_type: TYPE_UINT8 dims: [28, 28] } ]
output [ { name: "x_loc" data_type: TYPE_FP32 dims: [28, 28] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
LIBRARY = "libpython3.11.so.1.0"
"""What the backend's process is linked with."""


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        # these exist in a process of the backend alone
        import triton_python_backend_utils as backend
        from session import open_session

        self.backend = backend
        self.session = open_session()

    def execute(self, requests: list) -> list:
        """Run the requests of a batch together."""
        import numpy as np

        backend = self.backend
        tensors = [backend.get_input_tensor_by_name(each, "x").as_numpy() for each in requests]
        x = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        (x_loc,) = self.session.run(None, {"x": x})
        answers, at = [], 0
        for tensor in tensors:
            part = backend.Tensor("x_loc", x_loc[at : at + len(tensor)])
            answers.append(backend.InferenceResponse([part]))
            at += len(tensor)
        return answers


def write_folders(server: Path, out: Path) -> None:
    """Write a repository of one model, whose version 1 is this file, and the backend's folder."""
    model = out / "models" / "reconstruct"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG)
    shutil.copy(__file__, model / "1" / "model.py")
    # the backend does not read PYTHONPATH
    shutil.copy(Path(__file__).with_name("session.py"), model / "1")
    # its process must lie beside it, and the wheel has one for each version of Python
    shutil.copytree(server / "backends", out / "backends")
    stub = server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, out / "backends" / "python")


if __name__ == "__main__":
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        sys.exit(f"{LIBRARY} is missing: apt-get install libpython3.11")
    write_folders(Path(sys.argv[1]), Path(sys.argv[2]))
