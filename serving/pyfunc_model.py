"""The MLflow pyfunc of a registered version, logged as code: numpy and onnxruntime only.

It stands alone, without an import from this project, because MLflow loads this file into processes
that have the version and not the package. `params` choose the operation:
`{"operation": "score", "num_samples": 8, "seed": 7}`.
"""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime

_MAX_BATCH = 1024


class BundleModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """encode, reconstruct and score rows `x`; sample as many images as `x` has rows."""

    def load_context(self, context: Any) -> None:
        """Read the manifest; graphs are opened at their first use."""
        self._folder = Path(context.artifacts["bundle"])
        self._manifest = json.loads((self._folder / "manifest.json").read_bytes())
        self._sessions: dict[str, Any] = {}

    # mlflow warns of any other hint: it would make the signature from it, which is logged apart
    def predict(
        self,
        context: Any,
        model_input: np.ndarray,
        params: Any = None,
    ) -> dict[str, Any]:
        """Run the operation in `params`; return its outputs by name."""
        params = {"operation": "reconstruct", "num_samples": 1, "seed": 0, **(params or {})}
        name = params["operation"]
        if name not in ("encode", "reconstruct", "sample", "score"):
            raise ValueError(
                f"operation must be encode, reconstruct, sample or score, got {name!r}"
            )
        operation = self._manifest["operations"][name]
        x = next(iter(model_input.values())) if isinstance(model_input, dict) else model_input
        pieces = [
            self._run(operation, x[start : start + _MAX_BATCH], start, params)
            for start in range(0, max(len(x), 1), _MAX_BATCH)
        ]
        names = [output["name"] for output in operation["outputs"]]
        return {n: np.concatenate(p) for n, p in zip(names, zip(*pieces, strict=True), strict=True)}

    def _run(self, operation: Any, x: Any, start: int, params: Any) -> list[Any]:
        latent_dim, seed = self._manifest["latent_dim"], params["seed"]
        feeds: dict[str, Any] = {}
        for tensor, graph_name in zip(operation["inputs"], operation["graph_inputs"], strict=True):
            if tensor["name"] == "x":
                feeds[graph_name] = x
            elif len(tensor["shape"]) == 2:  # sample: a block of noise for each 1,024 rows
                feeds[graph_name] = _draw(seed, start // _MAX_BATCH, len(x), latent_dim)
            else:  # score: all rows share their draws
                eps = _draw(seed, 0, params["num_samples"], latent_dim)
                feeds[graph_name] = np.broadcast_to(eps, (len(x), *eps.shape))
        outputs: list[Any] = self._session(operation["graph"]).run(None, feeds)
        return outputs

    def _session(self, graph: str) -> Any:
        if graph not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            self._sessions[graph] = onnxruntime.InferenceSession(
                self._folder / graph, options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[graph]


def _draw(seed: int, block: int, rows: int, width: int) -> Any:
    """The noise of `serving.noise.draw_rows`, at most one block of it."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, block]))
    return generator.standard_normal((rows, width), np.float32)


mlflow.models.set_model(BundleModel())
