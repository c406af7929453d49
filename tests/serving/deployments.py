"""Read the files of a deployment as Triton, Kubernetes and Docker do."""

from pathlib import Path
from typing import Any

import pytest

from serving.deploy import write_deployment
from serving.source import Source

OPERATIONS = ("decode", "draw", "encode", "reconstruct", "sample", "score")
HOSTILE = "va\"e\n# x\nUSER root\n: - $(HOME) $x ${y} \\ ' {} [ä\x85\u2028😀"


def parse_config(path: Path) -> Any:
    """Parse a config.pbtxt as a Triton client does."""
    reason = "a client's package, not one of the server's"
    pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    text_format = pytest.importorskip("google.protobuf.text_format", reason=reason)
    return text_format.Parse(path.read_text(), pb2.ModelConfig())


def parse_yaml(path: Path) -> Any:
    yaml = pytest.importorskip("yaml", reason="comes with mlflow, the server has no YAML")
    return yaml.safe_load(path.read_text())


def instructions(folder: Path) -> list[tuple[str, str]]:
    """Return the Dockerfile as (instruction, arguments), with continuation lines joined."""
    text = (folder / "Dockerfile").read_text()
    assert "\\\r" not in text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


def argument(folder: Path, instruction: str) -> str:
    """Return the arguments of the only instruction of this name."""
    (found,) = (rest for name, rest in instructions(folder) if name == instruction)
    return found


def container(source: Source, out: Path, **options: Any) -> Any:
    write_deployment(source, "kserve", out, **options)
    (only,) = parse_yaml(out / "inferenceservice.yaml")["spec"]["predictor"]["containers"]
    return only
