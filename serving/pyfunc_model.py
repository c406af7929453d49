"""The MLflow pyfunc of a registered version, logged as code: numpy and onnxruntime only.

It stands alone, without an import from this project, because MLflow loads this file into processes
that have the version and not the package. `params` choose the operation:
`{"operation": "score", "num_samples": 8, "seed": 7}`.
"""

import json
import os
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it at its import
import onnxruntime

_MAX_BATCH = 1024
_MAX_DECODED = 4096
_NOISE_BLOCK = 1024


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
        draws = params["num_samples"] if name == "score" else 1
        if not 1 <= draws <= _MAX_DECODED:
            raise ValueError(f"num_samples must be from 1 to {_MAX_DECODED}, got {draws}")
        operation = self._manifest["operations"][name]
        x = next(iter(model_input.values())) if isinstance(model_input, dict) else model_input
        feeds = self._feeds(operation, np.asarray(x), draws, params["seed"])
        session, step = self._session(operation["graph"]), min(_MAX_BATCH, _MAX_DECODED // draws)
        pieces = [
            session.run(None, {key: value[start : start + step] for key, value in feeds.items()})
            for start in range(0, len(x), step)
        ]
        names = [output["name"] for output in operation["outputs"]]
        return {n: np.concatenate(p) for n, p in zip(names, zip(*pieces, strict=True), strict=True)}

    def _feeds(self, operation: Any, x: Any, draws: int, seed: int) -> dict[str, Any]:
        latent_dim = self._manifest["latent_dim"]
        feeds: dict[str, Any] = {}
        for tensor, graph_name in zip(operation["inputs"], operation["graph_inputs"], strict=True):
            if tensor["name"] == "x":
                feeds[graph_name] = x
            elif len(tensor["shape"]) == 2:  # sample
                feeds[graph_name] = _draw(seed, len(x), latent_dim)
            else:  # score: all rows share their draws
                eps = _draw(seed, draws, latent_dim)
                feeds[graph_name] = np.broadcast_to(eps, (len(x), *eps.shape))
        return feeds

    def _session(self, graph: str) -> Any:
        if graph not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            # int8 products must not overflow, on whatever processor this runs
            options.add_session_config_entry("session.x64quantprecision", "1")
            self._sessions[graph] = onnxruntime.InferenceSession(
                self._folder / graph, options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[graph]


def _draw(seed: int, rows: int, width: int) -> Any:
    """The noise of `serving.noise.draw_rows`, from its first row on."""
    blocks = []
    for block, start in enumerate(range(0, rows, _NOISE_BLOCK)):
        generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, block]))
        size = (min(_NOISE_BLOCK, rows - start), width)
        blocks.append(generator.standard_normal(size, np.float32))
    return np.concatenate(blocks)


mlflow.models.set_model(BundleModel())
