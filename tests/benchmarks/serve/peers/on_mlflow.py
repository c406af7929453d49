# mypy: ignore-errors
"""`mlflow models serve`: a pyfunc with a signature; run this file once to save it."""

import os
import sys
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec


class Reconstruct(mlflow.pyfunc.PythonModel):
    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        from session import open_session

        os.environ["GRAPH"] = context.artifacts["graph"]
        self.session = open_session()

    def predict(self, context, model_input, params=None):
        return self.session.run(None, {"x": model_input})[0]


if __name__ == "__main__":
    mlflow.pyfunc.save_model(
        sys.argv[1],
        python_model=Reconstruct(),
        artifacts={"graph": os.environ["GRAPH"]},
        code_paths=[str(Path(__file__).with_name("session.py"))],
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(np.uint8), (-1, 28, 28))]),
            Schema([TensorSpec(np.dtype(np.float32), (-1, 28, 28))]),
        ),
        pip_requirements=["mlflow", "onnxruntime"],
    )
