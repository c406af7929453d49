"""MLServer's own codecs, which `make setup-dev` fetches: they send a data frame, and read one."""

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("mlserver", "mlserver.grpc")
"""Their modules are imported alone: what the packages import needs the whole server."""


@cache
def _import(name: str) -> Any:
    folder = Path(sys.prefix, "mlserver")
    if not folder.exists():
        raise ModuleNotFoundError(f"{folder} is missing: run make setup-dev", name="mlserver")
    for package in _PACKAGES:
        if package not in sys.modules:
            module = ModuleType(package)
            module.__path__ = [str(folder.joinpath(*package.split(".")))]
            sys.modules[package] = module
    return import_module(name)


def encode_frame(frame: Any) -> dict[str, Any]:
    """Return the body of a request over REST, as JSON's types."""
    codec = _import("mlserver.codecs").PandasCodec
    content: dict[str, Any] = codec.encode_request(frame, use_bytes=False).model_dump(
        mode="json", exclude_none=True
    )
    return content


def encode_frame_for_grpc(columns: Mapping[str, list[Any]], model: str) -> bytes:
    """Return a ModelInferRequest of MLServer's own class, as its bytes.

    Another process writes it: tritonclient has classes of the same names.
    """
    content = json.dumps([columns, model]).encode()
    command = [sys.executable, "-W", "ignore", "-m", "tests.mlserver_codecs"]
    done = subprocess.run(command, input=content, capture_output=True, check=True, cwd=_ROOT)
    return done.stdout


def decode_frame(answer: dict[str, Any]) -> Any:
    """Return the DataFrame that an answer over REST holds."""
    response = _import("mlserver.types").InferenceResponse.model_validate(answer)
    return _import("mlserver.codecs").PandasCodec.decode_response(response)


def _main() -> None:
    import pandas as pd

    columns, model = json.load(sys.stdin)
    frame = pd.DataFrame({name: pd.Series(v, dtype=object) for name, v in columns.items()})
    request = _import("mlserver.codecs").PandasCodec.encode_request(frame)
    converter = _import("mlserver.grpc.converters").ModelInferRequestConverter
    message = converter.from_types(request, model_name=model)
    sys.stdout.buffer.write(message.SerializeToString())


if __name__ == "__main__":
    _main()
