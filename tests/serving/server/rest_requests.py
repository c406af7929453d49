"""Write requests of the Open Inference Protocol over REST, and read their answers."""

import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from serving.protocol.messages import DATATYPES
from tests.serving.running import Running
from tests.serving.server.arrays import Arrays

NAMES = ("encode", "decode", "reconstruct", "sample", "score", "draw")
LENGTH = "inference-header-content-length"


def body_of(
    arrays: Arrays, binary: Sequence[str] = (), **content: Any
) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request; the tensors named in `binary` follow the JSON."""
    tensors, tail = [], b""
    for name, array in arrays.items():
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[array.dtype],
            "shape": list(array.shape),
        }
        if name in binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            tensor["data"] = array.reshape(-1).tolist()
        tensors.append(tensor)
    head = json.dumps({"inputs": tensors, **content}).encode()
    return head + tail, {LENGTH: str(len(head))} if binary else {}


def arrays_of(response: httpx.Response) -> dict[str, np.ndarray]:
    """Return the outputs of an answer, JSON or binary, in its order."""
    assert response.status_code == 200, response.text
    length = response.headers.get(LENGTH)
    head = response.content[: None if length is None else int(length)]
    tail = response.content[len(head) :]
    arrays = {}
    for output in json.loads(head)["outputs"]:
        dtype = {"FP32": "<f4", "UINT8": "u1"}[output["datatype"]]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(output["data"], dtype)
        else:
            assert "data" not in output
            array, tail = np.frombuffer(tail[:size], dtype), tail[size:]
        arrays[output["name"]] = array.reshape(output["shape"])
    assert tail == b""
    return arrays


def refused(response: httpx.Response, status: int) -> str:
    """Return the text of a refusal, which is always {"error": text}."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert content.keys() == {"error"}
    assert isinstance(content["error"], str)
    return str(content["error"])


def fill(path: str, server: Running, name: str = "sample") -> str:
    filled = path.replace("{name}", name).replace("{version}", server.version)
    return filled.replace("{file}", "app.js")
