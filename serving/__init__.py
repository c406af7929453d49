"""Use a bundle, without torch or the pipeline: run, score, sample and serve.

`Client` and `AsyncClient` call a server; see `serving.client`.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.client import AsyncClient as AsyncClient
    from serving.client import Client as Client

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it when it is imported

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    """Import the clients on demand: they need httpx, which a server does not."""
    if name in __all__:
        try:
            from serving import client
        except ModuleNotFoundError as err:
            if err.name != "httpx":
                raise
            raise ModuleNotFoundError(
                f"serving.{name} needs httpx: pip install 'vae-pipeline[client]'", name="httpx"
            ) from err

        return getattr(client, name)
    raise AttributeError(f"module 'serving' has no attribute {name!r}")
