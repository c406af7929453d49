# mypy: ignore-errors
"""LitServe: its fast queue (719 requests a second, else 458), no batches (421 to 569 with them)."""

import sys

import litserve
import numpy as np
from session import open_session


class Reconstruct(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.session = open_session()

    def decode_request(self, request: dict) -> np.ndarray:
        return np.asarray(request["x"], np.uint8)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": x})[0]

    def encode_response(self, x_loc: np.ndarray) -> dict:
        return {"x_loc": x_loc.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        Reconstruct(), accelerator="cpu", workers_per_device=1, fast_queue=True
    )
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
